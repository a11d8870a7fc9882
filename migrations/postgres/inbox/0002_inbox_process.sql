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
