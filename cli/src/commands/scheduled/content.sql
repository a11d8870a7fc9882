-- What is in a scheduled event: $1 its id.
select key, headers::text as headers, payload
from pillarbox.outbox_scheduled
where event_id = $1::text::uuid
