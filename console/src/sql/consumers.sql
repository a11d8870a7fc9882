-- The consumers of an inbox: events that are being tried again (at most $1 are counted, over all consumers), for how many
-- seconds the oldest of them has been failing, how many of them wait for a provider, and the processes that were seen
-- within $2 seconds.
--
-- The names stand in the inbox itself, which is large. They are read one by one from the front of its primary key: one look
-- into the index for each consumer. At most 500 consumers.
with recursive handles (consumer) as (
    (select consumer from pillarbox.inbox order by consumer limit 1)
    union all
    select (
        select next.consumer from pillarbox.inbox as next
        where next.consumer > handles.consumer order by next.consumer limit 1
    )
    from handles where handles.consumer is not null
),
failing as (
    select consumer, count(*) as events, count(*) filter (where outages > 0) as away, min(first_failed_at) as since
    from (
        select consumer, outages, first_failed_at
        from pillarbox.inbox_failure where attempts > 0 or outages > 0 or uncounted > 0 limit $1
    ) as counted
    group by consumer
),
processes as (
    select consumer, count(*) as seen
    from pillarbox.inbox_member
    where seen_at > clock_timestamp() - $2::bigint * interval '1 second'
    group by consumer
),
names as (
    select consumer from (select consumer from handles where consumer is not null limit 500) as named
    union select consumer from failing
    union select consumer from pillarbox.inbox_member
    union select consumer from (
        select consumer from pillarbox.inbox_dead_letter where state in ('dead', 'parked') limit $1
    ) as lettered
)
select
    names.consumer,
    coalesce(failing.events, 0),
    coalesce(failing.away, 0),
    extract(epoch from clock_timestamp() - failing.since)::float8,
    coalesce(processes.seen, 0)
from names
left join failing on failing.consumer = names.consumer
left join processes on processes.consumer = names.consumer
order by names.consumer
limit 500
