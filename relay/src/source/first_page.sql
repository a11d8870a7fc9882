-- The first page of a window: everything visible now that the saved snapshot S could not see, in the order
-- of position, up to the page's size. The rest is in scan.sql.
--
--   $7 S          $8 floor F
--   $9, $10 in flight: the transactions in progress in S, and the position at or below which each has no rows
--
-- One statement, so one snapshot: the rows are those visible in S' = pg_current_snapshot(), exactly, and
-- whether a transaction in flight has finished is judged by the same S'. Judged a moment earlier, one that
-- finishes in between would be in S' yet have its rows below the start of the scan, and be lost.
--
-- The scan starts at F, or lower if a transaction with lower rows has finished since.
with start as materialized (
    select least($8, min(in_flight.low)) as low
    from unnest($9::text[]::xid8[], $10::bigint[]) as in_flight (xid, low)
    where pg_visible_in_snapshot(in_flight.xid, pg_current_snapshot())
),
new as not materialized (
    select *
    from pillarbox.outbox
    where not :surely_seen($7) and not :covered($4, $5::text[], $6::bigint[])
),
{page}
