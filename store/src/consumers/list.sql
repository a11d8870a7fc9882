-- How each consumer of an inbox is: $1 the consumer, or null for all; $2 how many seconds a silent process counts.
--
-- The names of the consumers stand in the inbox itself, which is large. They are read one by one from the front of its
-- primary key: one look into the index for each consumer, and not one for each event. A consumer that has handled
-- nothing yet is found by its failures, letters or processes.
--
-- The lag is the newest that any process has measured. A consumer waits if each process that was seen lately says why it
-- handles nothing; the reason is that of the newest. An operator's pause is told by itself.
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
    -- A row without any of the three is an event that is merely in progress again.
    select consumer, count(*) as events, min(first_failed_at) as since
    from pillarbox.inbox_failure where attempts > 0 or outages > 0 or uncounted > 0
    group by consumer
),
letters as (
    select consumer, count(*) filter (where state = 'dead') as dead, count(*) filter (where state = 'parked') as parked
    from pillarbox.inbox_dead_letter where state in ('dead', 'parked')
    group by consumer
),
members as (
    select
        consumer,
        count(*) filter (where seen_at > clock_timestamp() - $2::float8 * interval '1 second') as processes,
        max(seen_at) as seen_at,
        (array_agg(stream order by seen_at desc))[1] as stream,
        bool_and(reason is not null and state <> 'paused-by-operator')
            filter (where seen_at > clock_timestamp() - $2::float8 * interval '1 second') as waits,
        (array_agg(reason order by seen_at desc))[1] as reason
    from pillarbox.inbox_member
    group by consumer
),
measured as (
    select distinct on (consumer) consumer, pending, ack_pending, oldest_age, measured_at
    from pillarbox.inbox_member
    where measured_at is not null
    order by consumer, measured_at desc
),
names as (
    select consumer from handles where consumer is not null
    union select consumer from failing
    union select consumer from letters
    union select consumer from pillarbox.inbox_forgotten
    union select consumer from pillarbox.inbox_process
    union select consumer from pillarbox.inbox_member
    union select consumer from pillarbox.inbox_pause
    union select consumer from pillarbox.inbox_rate
)
select
    names.consumer,
    members.stream,
    coalesce(members.processes, 0) as processes,
    extract(epoch from clock_timestamp() - members.seen_at)::float8 as seen_age,
    case when members.waits then members.reason end as waits_for,
    measured.pending,
    measured.ack_pending,
    (measured.oldest_age + extract(epoch from clock_timestamp() - measured.measured_at))::float8 as oldest_age,
    extract(epoch from clock_timestamp() - measured.measured_at)::float8 as measured_age,
    coalesce(failing.events, 0) as failing,
    extract(epoch from clock_timestamp() - failing.since)::float8 as failing_age,
    coalesce(letters.parked, 0) as parked,
    coalesce(letters.dead, 0) as dead,
    rate.per_second,
    rate.set_by,
    rate.note as rate_note,
    to_char(rate.set_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as set_at
from names
left join failing on failing.consumer = names.consumer
left join letters on letters.consumer = names.consumer
left join members on members.consumer = names.consumer
left join measured on measured.consumer = names.consumer
left join pillarbox.inbox_rate as rate on rate.consumer = names.consumer
where $1::text is null or names.consumer = $1
order by names.consumer
