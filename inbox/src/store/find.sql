-- Dead letters by what an operator may call them: $1 consumer, $2 id, $3 position, $4 stream, or null for any.
--
-- An id is the event's own, its identity, or, of a message that is no event, what is written where an id would be.
select *
from pillarbox.inbox_dead_letter
where
    consumer = $1
    and ($4::text is null or stream is null or stream = $4)
    and (
        position = $3
        or event_id = $2
        or identity = $2
        or (
            event_type is null
            and exists (
                select
                from jsonb_each_text(headers) as header
                where lower(header.key) in ('ce-id', 'nats-msg-id') and header.value = $2
            )
        )
    )
order by position
limit 100
