-- A page of a sweep: rows that appeared at positions that the scan has passed, up to a mark's floor. They come from a
-- load with positions of its own, or from a sequence that was set back. scan.sql has the rest.
--
--   $7 the last position looked at          $8 the mark's floor
--   $9 the mark's snapshot: rows that it saw have been looked at
--   $10, $11 in flight: the transactions in progress then, and the position at or below which each has no rows of the
--   sequence's. What lies above is left to the scan, which starts there when the transaction has finished; what lies
--   below was put there by other means, and nobody else looks for it
--   $12 the relay's name
--
-- Rows that were set aside are left out. After setting rows aside, the relay begins the sweep again, and would find
-- them each time.
with start as materialized (
    select $7::bigint as low
),
new as not materialized (
    select *, :flushed() as flushed
    from pillarbox.outbox
    where
        position <= $8
        and not :seen($9)
        and not :awaited($10::text[]::xid8[], $11::bigint[])
        and not :covered($4, $5::text[], $6::bigint[])
        and not :set_aside($12)
),
{page}
