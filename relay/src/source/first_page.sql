-- The first page of a window: everything that is visible now and that the saved snapshot S could not see, in the order
-- of position, up to the page's size. scan.sql has the rest.
--
--   $7 S          $8 floor F
--   $9, $10 in flight: the transactions in progress in S, and the position at or below which each has no rows
--
-- It is one statement, so it has one snapshot: the rows are exactly those visible in S' = pg_current_snapshot(), and S'
-- also decides whether a transaction in flight has finished. If that were decided a moment earlier, a transaction that
-- finishes in between would be in S' although its rows lie below the start of the scan, and they would be lost.
--
-- The scan starts at F, or lower if a transaction with lower rows has finished since.
with start as materialized (
    select least($8, min(in_flight.low)) as low
    from unnest($9::text[]::xid8[], $10::bigint[]) as in_flight (xid, low)
    where pg_visible_in_snapshot(in_flight.xid, pg_current_snapshot())
),
new as not materialized (
    select *, :flushed() as flushed
    from pillarbox.outbox
    where not :surely_seen($7) and not :covered($4, $5::text[], $6::bigint[])
),
{page}
