-- Events that have failed and will be tried again, the longest first: $1 the consumer, or null for any; at most $2. Of an
-- error, the first 2,000 characters.
select
    consumer,
    coalesce(id, event_id) as event_id,
    source,
    attempts,
    outages,
    uncounted,
    left(last_error, 2000) as error,
    extract(epoch from clock_timestamp() - first_failed_at)::float8 as since,
    extract(epoch from clock_timestamp() - last_failed_at)::float8 as last
from pillarbox.inbox_failure
where
    ($1::text is null or consumer = $1)
    and (attempts > 0 or outages > 0 or uncounted > 0)
order by first_failed_at, consumer, event_id
limit $2
