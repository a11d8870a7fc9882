-- Removes old rows of a consumer from a part of the table.
--
--   $1 consumer   $2 retention in seconds   $3 first block   $4 the block after the last
--
-- The part is read by its place on disk. So the work is bounded whatever is found, and the table needs no index by age,
-- which every insert would pay for. It never waits: rows in use are left for the next time. Only one process removes at
-- a time. Returns whether this one did, how many rows it removed, and how large the table is.
with turn as materialized (
    select
        pg_catalog.pg_try_advisory_xact_lock(
            pg_catalog.hashtextextended('pillarbox.inbox ' operator(pg_catalog.||) $1, 0)
        ) as mine
),
old as materialized (
    select inbox.ctid
    from pillarbox.inbox
    where
        ctid operator(pg_catalog.>=) pg_catalog.format('(%s,0)', $3::bigint)::pg_catalog.tid
        and ctid operator(pg_catalog.<) pg_catalog.format('(%s,0)', $4::bigint)::pg_catalog.tid
        and consumer operator(pg_catalog.=) $1
        and processed_at operator(pg_catalog.<) (
            pg_catalog.clock_timestamp()
            operator(pg_catalog.-) ($2::bigint::double precision operator(pg_catalog.*) interval '1 second')
        )
        and (select mine from turn)
    for update skip locked
),
removed as (
    delete from pillarbox.inbox
    where ctid operator(pg_catalog.=) any (array(select ctid from old))
    returning processed_at
),
-- What a durable consumer that is created anew must not read again: see beginning.rs.
forgotten as (
    insert into pillarbox.inbox_forgotten as known (consumer, handled_at)
    select $1, pg_catalog.max(processed_at)
    from removed
    having pg_catalog.count(*) operator(pg_catalog.>) 0
    on conflict (consumer) do update
    set handled_at = greatest(known.handled_at, excluded.handled_at)
)
select
    (select mine from turn) as mine,
    (select pg_catalog.count(*) from removed) as removed,
    pg_catalog.pg_relation_size('pillarbox.inbox')
    operator(pg_catalog./) pg_catalog.current_setting('block_size')::bigint as blocks
