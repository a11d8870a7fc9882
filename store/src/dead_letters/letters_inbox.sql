-- The inbox's letters, for list.sql: $1 event id, or null for any.
--
-- The id may be the event's own or its identity. For a message that is no event, it may be the id that its headers claim.
    position as letter, position, consumer as owner, event_id, true as whole
from pillarbox.inbox_dead_letter
where
    $1::text is null
    or event_id = $1
    or identity = $1
    or (
        event_type is null
        and exists (
            select
            from jsonb_each_text(headers) as header
            where lower(header.key) in ('ce-id', 'nats-msg-id') and header.value = $1
        )
    )
