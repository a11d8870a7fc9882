-- How each page is read: `{page}` in first_page.sql, next_page.sql and late.sql, which say before it where it starts
-- (`start`) and which rows it is about (`new`).
--
--   $1 page size          $2 what a row may weigh to come whole; for the words in braces see rows/select.rs
--   $3 how many positions to look at
--   $4, $5, $6 what was shipped in another cluster, and the words behind colons: see source/visibility.rs
--
-- The scan looks at a bounded number of positions, however little it finds there, so that the statement takes a
-- bounded time; positions without a row before the first one are skipped. `upto` is how far it looked, `last` the last
-- position there is.
--
-- The first row is the head: how far it looked, the statement's snapshot, and where the write-ahead log stands.
-- `flushed` is false while something that is visible may not be on disk yet (a writer with synchronous_commit = off);
-- such rows are not shipped before the log is flushed up to `wal`.
scan as materialized (
    select
        reach.low,
        case
            when reach.low > 9223372036854775807 - $3::bigint then 9223372036854775807
            else reach.low + $3::bigint
        end as upto,
        (select max(outbox.position) from pillarbox.outbox) as last
    from (
        select coalesce(
            (select min(outbox.position) from pillarbox.outbox where outbox.position > (select low from start)) - 1::bigint,
            (select low from start)
        ) as low
    ) as reach
)
select
    null::bigint as position,
    null::uuid as event_id,
    null::text as event_type,
    null::text as topic,
    null::text as key,
    null::text as headers,
    null::bytea as payload,
    null::timestamptz as created_at,
    null::bigint as bytes,
    null::bigint as place,
    scan.upto,
    scan.last,
    pg_current_snapshot()::text as snapshot,
    pg_current_wal_insert_lsn()::text as wal,
    pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn() as flushed
from scan
union all
(
    select {columns}, null, null, null, null, null
    from (
        select *, {bytes} as bytes
        from (
            select {read}
            from new
            where
                position > (select low from scan)
                and position <= (select upto from scan)
            order by position
            limit $1
        ) as read
        offset 0
    ) as row
)
