-- Rows that came to positions which the scan has left behind: a load with positions of its own, or a sequence that
-- was set back. A page of a sweep over the positions up to a mark's floor.
--
--   $1 the last position looked at          $2 the mark's floor
--   $3 the mark's snapshot: what it saw has been looked at
--   $4 the transactions in flight then: their rows are found by the scan
--   $5 page size          $6 what a row may weigh to come whole; for the words in braces see rows/select.rs
--   $7, $8, $9 what was shipped in another cluster, and the words behind colons: see source/visibility.rs
--   $10 how many positions to look at
--
-- What was set aside is left alone: nothing else would end its being found. The first row is the head: how far it
-- looked.
with scan as materialized (
    select least($2::bigint, reach.low + $10::bigint) as upto, reach.low
    from (
        select coalesce(
            (
                select min(outbox.position)
                from pillarbox.outbox
                where outbox.position > $1::bigint and outbox.position <= $2::bigint
            ) - 1::bigint,
            $2::bigint
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
    null::bigint as last
from scan
union all
(
    select {columns}, null, null
    from (
        select *, {bytes} as bytes
        from (
            select {read}
            from pillarbox.outbox
            where
                position > (select low from scan)
                and position <= (select upto from scan)
                and not :seen($3)
                and txid <> all ($4::text[]::xid8[])
                and not :covered($7, $8::text[], $9::bigint[])
                and not exists (
                    select
                    from pillarbox.outbox_dead_letter as letter
                    where letter.position = outbox.position and letter.event_id = outbox.event_id
                )
            order by position
            limit $5
        ) as read
        offset 0
    ) as row
)
