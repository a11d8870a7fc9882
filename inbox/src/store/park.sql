-- Parks an event behind the dead one of its key: it counts as handled, so that a repeat is skipped.
--
--   $1 consumer   $2 event id   $3 type   $4 topic   $5 key   $6 headers   $7 payload
with claimed as (
    insert into pillarbox.inbox (consumer, event_id)
    values ($1, $2)
    on conflict do nothing
    returning event_id
)
insert into pillarbox.inbox_dead_letter
    (consumer, event_id, event_type, topic, key, headers, payload, reason, error, attempts, first_failed_at, state)
select
    $1, $2, $3, $4, $5, $6::text::jsonb, $7,
    'parked', 'an earlier event of its key is a dead letter', 0, clock_timestamp(), 'parked'
from claimed
on conflict (consumer, event_id) do nothing
