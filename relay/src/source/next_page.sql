-- A later page of a window: what S' sees and S does not, behind the last position read.
--
--   $1 S          $2 S'          $3 the last position read          $4 page size
--   $5 what a row may weigh to come whole; for the words in braces see rows/select.rs
--   $6, $7, $8 what was shipped in another cluster, and the words behind colons: see source/visibility.rs
--   $9 how many positions to look at
--
-- The first row is the head: how far it looked, and the last position there is, as in first_page.sql.
with scan as materialized (
    select
        reach.low,
        case
            when reach.low > 9223372036854775807 - $9::bigint then 9223372036854775807
            else reach.low + $9::bigint
        end as upto,
        (select max(outbox.position) from pillarbox.outbox) as last
    from (
        select coalesce(
            (select min(outbox.position) from pillarbox.outbox where outbox.position > $3::bigint) - 1::bigint,
            $3::bigint
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
    scan.last
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
                and not :surely_seen($1)
                and :seen($2)
                and not :covered($6, $7::text[], $8::bigint[])
            order by position
            limit $4
        ) as read
        offset 0
    ) as row
)
