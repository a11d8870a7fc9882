-- Writes events in the order given: positions are drawn in the order of `ordinality`.
--
--   $1 ids   $2 types   $3 topics   $4 keys   $5 headers   $6 payloads
insert into pillarbox.outbox (event_id, event_type, topic, key, headers, payload)
select event_id, event_type, topic, key, headers::jsonb, payload
from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[])
    with ordinality as event (event_id, event_type, topic, key, headers, payload, ordinality)
order by ordinality
