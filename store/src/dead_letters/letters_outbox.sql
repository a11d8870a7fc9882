-- The outbox's letters, for list.sql: $1 event id, or null for any.
    letter, position, relay as owner, event_id::text as event_id, whole
from pillarbox.outbox_dead_letter
where $1::text is null or event_id::text = $1
