-- Rows that came to positions which the scan has left behind: a load with positions of its own, or a sequence that
-- was set back. A page of a sweep over the positions up to a mark's floor. The rest is in scan.sql.
--
--   $7 the last position looked at          $8 the mark's floor
--   $9 the mark's snapshot: what it saw has been looked at
--   $10, $11 in flight: the transactions in progress then, and the position at or below which each has no rows of the
--   sequence's. What lies above is left to the scan, which starts there when the transaction has finished; what lies
--   below was put there by other means, and nobody else looks for it
--   $12 the relay's name
--
-- What was set aside is left alone: the relay begins the sweep again after that, and would find it each time.
with start as materialized (
    select $7::bigint as low
),
new as not materialized (
    select *
    from pillarbox.outbox
    where
        position <= $8
        and not :seen($9)
        and not :awaited($10::text[]::xid8[], $11::bigint[])
        and not :covered($4, $5::text[], $6::bigint[])
        and not :set_aside($12)
),
{page}
