-- Finds a consumer's dead letters by an id or a position: $1 consumer, $2 id, $3 position, $4 stream, or null for any.
--
-- The id may be the event's own or its identity. For a message that is no event, it may be the id that its headers claim.
select *
from pillarbox.inbox_dead_letter
where
    consumer operator(pg_catalog.=) $1
    and ($4::pg_catalog.text is null or stream is null or stream operator(pg_catalog.=) $4)
    and (
        position operator(pg_catalog.=) $3
        or event_id operator(pg_catalog.=) $2
        or identity operator(pg_catalog.=) $2
        or (
            event_type is null
            and exists (
                select
                from pg_catalog.jsonb_each_text(headers) as header
                where
                    pg_catalog.lower(header.key) operator(pg_catalog.=) any ('{ce-id,nats-msg-id}')
                    and header.value operator(pg_catalog.=) $2
            )
        )
    )
order by position
limit 100
