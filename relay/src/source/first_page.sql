-- The first page of a window: everything visible now that the saved snapshot S could not see, in the order
-- of position, up to the page's size.
--
--   $1 S                       $2 floor F
--   $3, $4 in flight: the transactions in progress in S, and the position at or below which each has no rows
--   $5 page size               $6 what a row may weigh to come whole; for the words in braces see rows/select.rs
--   $7, $8, $9 what was shipped in another cluster, and the words behind colons: see source/visibility.rs
--   $10 how many positions to look at
--
-- One statement, so one snapshot: the rows are those visible in S' = pg_current_snapshot(), exactly, and
-- whether a transaction in flight has finished is judged by the same S'. Judged a moment earlier, one that
-- finishes in between would be in S' yet have its rows below the start of the scan, and be lost.
--
-- The scan starts at F, or lower if a transaction with lower rows has finished since. It looks at a bounded
-- number of positions, however little it finds there, so that the statement takes a bounded time; positions
-- without a row are skipped. `upto` is how far it looked, `last` the last position there is.
--
-- The first row is the head: S', and where the write-ahead log stands. `flushed` is false while something
-- that is visible may not be on disk yet (a writer with synchronous_commit = off); such rows are not
-- shipped before the log is flushed up to `wal`.
with start as materialized (
    select least($2, min(in_flight.low)) as low
    from unnest($3::text[]::xid8[], $4::bigint[]) as in_flight (xid, low)
    where pg_visible_in_snapshot(in_flight.xid, pg_current_snapshot())
),
scan as materialized (
    select
        reach.low,
        case
            when reach.low > 9223372036854775807 - $10::bigint then 9223372036854775807
            else reach.low + $10::bigint
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
            from pillarbox.outbox
            where
                position > (select low from scan)
                and position <= (select upto from scan)
                and not :surely_seen($1)
                and not :covered($7, $8::text[], $9::bigint[])
            order by position
            limit $5
        ) as read
        offset 0
    ) as row
)
