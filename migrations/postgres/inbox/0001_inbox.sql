-- The inbox of a service: which events each of its consumers has handled, which it is still trying, and
-- which it gave up on.
--
-- Plain SQL: apply it with `pillarbox migrate inbox`, with `pillarbox_inbox::migrate`, with psql, or with
-- any migration tool. Another schema is had by replacing the word `pillarbox` throughout, which is what
-- `--schema` does.

-- `create schema if not exists` asks for the right to create schemas in the database also where the schema is
-- there.
do $$
begin
    if to_regnamespace('pillarbox') is null then
        create schema pillarbox;
    end if;
end
$$;

-- One row for each event a consumer is done with, written in the handler's transaction: the row and the
-- handler's effects commit together or not at all. Inserting it is also the lock: a second delivery of the
-- same event waits for the first one's transaction and then finds the row.
--
-- `event_id` is the event's identity: the id of an event that a relay shipped, or that names no source; of others a
-- digest of source and id, since two sources may give the same id. Never longer than 36 bytes, unless somebody else
-- wrote the row.
create table if not exists pillarbox.inbox (
    consumer     text        not null check (consumer <> ''),
    event_id     text        not null check (event_id <> ''),
    processed_at timestamptz not null default clock_timestamp(),
    primary key (consumer, event_id)
);
-- No index by age: old rows are removed by walking the table a piece at a time, which costs the insert nothing.

-- For each consumer, when the newest of the events was handled that were removed from the inbox for their age. Written
-- with their removal. What the stream stored until then may have been handled and forgotten: a durable consumer that
-- is made anew must not read it again. No row: nothing was forgotten.
create table if not exists pillarbox.inbox_forgotten (
    consumer   text        not null primary key,
    handled_at timestamptz not null
);

-- Events that failed and will be tried again. Written after the handler's rollback, removed with its
-- success or with the dead letter. `outages` is how often somebody was away whom the handler needs, which is no
-- attempt, and `outage_since` when that began. `uncounted` is how many other failures were not counted as attempts:
-- conflicts, and connections that the event may have broken itself. `started` is how far an event that was delivered
-- before is under suspicion of killing its process: 0 not at all, 1 in work, 2 and 4 in work alone, 3 and 5 held back to
-- see whether the process lives without it; `started_at` is since when.
-- `event_id` is the identity, as in the inbox; `id` and `source` are its own where that is another text.
create table if not exists pillarbox.inbox_failure (
    consumer        text        not null,
    event_id        text        not null,
    id              text        null,
    source          text        null,
    attempts        integer     not null check (attempts >= 0),
    outages         integer     not null default 0 check (outages >= 0),
    outage_since    timestamptz null,
    uncounted       integer     not null default 0 check (uncounted >= 0),
    started         integer     not null default 0 check (started between 0 and 5),
    started_at      timestamptz null,
    last_error      text        not null,
    first_failed_at timestamptz not null default clock_timestamp(),
    last_failed_at  timestamptz not null default clock_timestamp(),
    primary key (consumer, event_id)
);

-- For each consumer, when one of its processes last died for reasons of its own: while the event that was suspected was
-- not in work. For a day it then takes more to take an event for one that kills its process.
create table if not exists pillarbox.inbox_own_death (
    consumer text        not null primary key,
    died_at  timestamptz not null
);

-- Events that were given up, whole, so that they can be looked at and tried again.
--
--   dead       given up, until somebody retries or discards it
--   parked     waits for the consumer to handle it: it was retried, or, with order = "strict", stands behind a
--              dead event of its key
--   retried    handled after all
--   discarded  not to be handled
--
-- `position` is the order in which they came. `due_at` is when a parked one may be taken: a process that takes
-- it moves it forward, and so has it for itself until then.
--
-- `event_id` is the id that the event's producer gave it, and `identity` what the inbox knows it by, where that is
-- another text. A message that could not be read has no type: its identity is its place, `stream_sequence` and
-- `stored_at` in the stream (a stream that is made anew counts from one again), and `event_id` is what to call it:
-- `STREAM:sequence`. `stream` is where it came from; only a consumer that reads this stream handles it after a retry.
create table if not exists pillarbox.inbox_dead_letter (
    position        bigint      not null generated always as identity primary key,
    consumer        text        not null,
    event_id        text        not null,
    identity        text        null,
    stream          text        null,
    stream_sequence bigint      null,
    stored_at       timestamptz null,
    event_type      text        null,
    topic           text        not null,
    key             text        null,
    headers         jsonb       not null,
    payload         bytea       not null,
    reason          text        not null,
    error           text        not null,
    attempts        integer     not null,
    first_failed_at timestamptz not null,
    dead_at         timestamptz not null default clock_timestamp(),
    state           text        not null default 'dead' check (state in ('dead', 'parked', 'retried', 'discarded')),
    due_at          timestamptz null,
    resolved_at     timestamptz null
);

-- An event has one letter, and so has a place.
create unique index if not exists inbox_dead_letter_event
    on pillarbox.inbox_dead_letter (consumer, coalesce(identity, event_id))
    where event_type is not null;
create unique index if not exists inbox_dead_letter_place
    on pillarbox.inbox_dead_letter (consumer, stream, stream_sequence, stored_at)
    where event_type is null;

create index if not exists inbox_dead_letter_open
    on pillarbox.inbox_dead_letter (consumer, key, position)
    where state in ('dead', 'parked');

-- HTTP requests that have been answered, by their Idempotency-Key. Written in the transaction of the handler's
-- own writes, like the inbox row of an event, but at its end, when there is an answer. `scope` is whose key it
-- is; `fingerprint` is the SHA-256 of method, path, query and body, to tell a repeat from another request under
-- the same key. The answer is kept as it was: the n-th name belongs to the n-th value.
create table if not exists pillarbox.inbox_request (
    scope         text        not null,
    key           text        not null check (key <> ''),
    fingerprint   bytea       not null,
    status        integer     not null check (status between 100 and 999),
    header_names  text[]      not null,
    header_values bytea[]     not null,
    body          bytea       not null,
    answered_at   timestamptz not null default clock_timestamp(),
    primary key (scope, key)
);

-- Removing old rows in batches walks them by age.
create index if not exists inbox_request_answered_at on pillarbox.inbox_request (answered_at);
