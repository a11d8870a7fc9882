-- Writes events in the order given: positions are drawn in the order of `ordinality`.
--
-- It runs in the service's transaction, with any search_path, so every name is written in pg_catalog. (`unnest` of
-- several arrays is always that of pg_catalog. It is syntax, and must not be written with a schema.)
--
--   $1 ids   $2 types   $3 topics   $4 keys   $5 headers   $6 payloads
insert into pillarbox.outbox (event_id, event_type, topic, key, headers, payload)
select event_id, event_type, topic, key, headers::pg_catalog.jsonb, payload
from unnest($1::pg_catalog.uuid[], $2::pg_catalog.text[], $3::pg_catalog.text[], $4::pg_catalog.text[], $5::pg_catalog.text[], $6::pg_catalog.bytea[])
    with ordinality as event (event_id, event_type, topic, key, headers, payload, ordinality)
order by ordinality
returning $1[1]
