-- Reads a page. It stands for `{page}` in first_page.sql, next_page.sql and late.sql, which define where the page
-- starts (`start`) and which rows it contains (`new`).
--
--   $1 page size          $2 the largest row that is read whole; rows/select.rs explains the words in braces
--   $3 how many positions to look at
--   $4, $5, $6 what was shipped in another cluster; source/visibility.rs explains these and the words after colons
--
-- The scan looks at a limited number of positions, however few rows it finds, so that the statement takes a bounded
-- time. It skips positions without a row before the first row. `upto` is how far it looked, `last` the last position in
-- the table.
--
-- The first row is the head: how far it looked, which table that was (see table_still.sql), how far the sequence of
-- positions is, the statement's snapshot, and where the write-ahead log stands. The statement holds a lock on the table
-- that it reads, so the table and the snapshot belong together.
--
-- `flushed` is false where a commit may not be on disk yet. In the head it says whether the log is flushed up to `wal`,
-- and so everything that is visible. In a row, see `:flushed` in source/visibility.rs. Only rows of asynchronous writers
-- need the wait, and concurrent writers keep moving `wal`. The cursor does not need it: its own commit is synchronous
-- and comes later in the log than everything that the snapshot sees.
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
),
here as materialized (
    {table}
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
    here.relation,
    here.sequence,
    here.file,
    {reached} as reached,
    pg_current_snapshot()::text as snapshot,
    pg_current_wal_insert_lsn()::text as wal,
    pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn() as flushed
from scan
cross join here
union all
(
    select {columns}, null, null, null, null, null, null, null, null, row.flushed
    from (
        select *, {bytes} as bytes
        from (
            select {read}, flushed
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
