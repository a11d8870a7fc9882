-- The processes of consumers that share a stream by partitions: which of them are alive, and which partitions each has.
-- Each process writes its row about once a second. The row counts for as long as the consumer's `takeover_ms`.
-- `sharing` is false while a process cannot do its share because it is not connected to the broker.
create table if not exists pillarbox.inbox_process (
    consumer   text        not null check (consumer <> ''),
    process    text        not null check (process <> ''),
    partitions integer     not null check (partitions > 0),
    sharing    boolean     not null,
    held       integer[]   not null,
    seen_at    timestamptz not null default clock_timestamp(),
    primary key (consumer, process)
);

-- The processes of consumers, with or without partitions, and how each of them is. Each writes its row about once a
-- second. `pending` events wait in the stream and `ack_pending` are with a process or come again; `oldest_age` is the age
-- in seconds of the oldest unhandled one. A process measures these for all processes of its consumer, at `measured_at`.
create table if not exists pillarbox.inbox_member (
    consumer    text             not null check (consumer <> ''),
    process     text             not null check (process <> ''),
    stream      text             not null,
    host        text             not null,
    state       text             not null,
    reason      text             null,
    pending     bigint           null,
    ack_pending bigint           null,
    oldest_age  double precision null,
    measured_at timestamptz      null,
    started_at  timestamptz      not null default clock_timestamp(),
    seen_at     timestamptz      not null default clock_timestamp(),
    primary key (consumer, process)
);

-- What operators have paused: all of a consumer, if `event_type` is empty, or its events of one type. The processes read
-- this about once a second. Nothing starts in a process that has not read it yet.
create table if not exists pillarbox.inbox_pause (
    consumer   text        not null check (consumer <> ''),
    event_type text        not null,
    paused_by  text        not null,
    note       text        null,
    paused_at  timestamptz not null default clock_timestamp(),
    primary key (consumer, event_type)
);

-- How many events a second a consumer may begin, over all its processes. `next_at` is up to when the rate has been given
-- out. A process that wants to begin events takes the next piece of time behind it, and begins only as many events in
-- that piece as the rate allows. So the processes take turns, and together never exceed the rate.
create table if not exists pillarbox.inbox_rate (
    consumer   text             not null primary key check (consumer <> ''),
    per_second double precision not null check (per_second > 0 and per_second <= 1000000),
    set_by     text             not null,
    note       text             null,
    set_at     timestamptz      not null default clock_timestamp(),
    next_at    timestamptz      not null default clock_timestamp()
);
