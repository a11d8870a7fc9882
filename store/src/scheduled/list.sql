-- Scheduled events, the next one first: $1 topic, $2 type, or null for all; $3 only those that could not be released;
-- $4 so many; $5 id, or null for all.
--
-- Only columns that the operator's role may read; the others are in content.sql.
select
    event_id::text as event_id,
    event_type,
    topic,
    to_char(due_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as due_at,
    extract(epoch from due_at - clock_timestamp())::float8 as due_in_seconds,
    to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at,
    error
from pillarbox.outbox_scheduled
where
    ($1::text is null or topic = $1::text)
    and ($2::text is null or event_type = $2::text)
    and (not $3::boolean or error is not null)
    and ($5::text is null or event_id = $5::text::uuid)
order by outbox_scheduled.due_at, outbox_scheduled.created_at
limit $4
