-- The topics of the first waiting events and of the newest events: $1 relay name.
--
-- Their number is limited, because topics may hold ids.
with waiting as (
    select topic
    from pillarbox.outbox
    where position > coalesce((select (cursor ->> 'floor'::text)::bigint from pillarbox.relay where name = $1), 0)
    order by position
    limit 1000
),
newest as (
    select topic
    from pillarbox.outbox
    order by position desc
    limit 1000
)
select topic from waiting
union
select topic from newest
limit 100
