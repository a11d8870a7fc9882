-- The processes of a consumer, the newest first: $1 the consumer.
select
    process,
    stream,
    host,
    state,
    reason,
    extract(epoch from clock_timestamp() - started_at)::float8 as started_age,
    extract(epoch from clock_timestamp() - seen_at)::float8 as seen_age
from pillarbox.inbox_member
where consumer = $1
order by started_at desc, process
limit 200
