-- The processes of consumers that share a stream by partitions: which are alive, and which partitions each has. A
-- row is written about once a second by its process, and counts for as long as the consumer's `takeover_ms`.
-- `sharing` is false while a process could not do its share: it is not connected to the broker.
create table if not exists pillarbox.inbox_process (
    consumer   text        not null check (consumer <> ''),
    process    text        not null check (process <> ''),
    partitions integer     not null check (partitions > 0),
    sharing    boolean     not null,
    held       integer[]   not null,
    seen_at    timestamptz not null default clock_timestamp(),
    primary key (consumer, process)
);
