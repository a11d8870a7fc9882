-- Cancels a scheduled event: $1 its id. It runs in the service's transaction, with any search_path.
--
-- It always answers one row. No row would not prove that the event has left: it could be the answer to another
-- statement.
with cancelled as (
    delete from pillarbox.outbox_scheduled
    where event_id operator(pg_catalog.=) $1::pg_catalog.uuid
    returning event_id
)
select $1::pg_catalog.uuid, exists (select from cancelled)
