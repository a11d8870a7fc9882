-- Writes an event that is to leave later. It runs in the service's transaction, with any search_path, so every name is
-- written in pg_catalog.
--
--   $1 id   $2 type   $3 topic   $4 key   $5 headers   $6 payload
--   $7 how long after $8 it is due      $8 a time, or null for the moment
--
-- The moment is that of the database's clock, and not the start of the transaction. An interval of hours and seconds is
-- the same in every time zone. A time in the past is due now.
insert into pillarbox.outbox_scheduled (event_id, due_at, event_type, topic, key, headers, payload)
values (
    $1,
    greatest(
        pg_catalog.clock_timestamp(),
        coalesce($8::pg_catalog.text::pg_catalog.timestamptz, pg_catalog.clock_timestamp())
            operator(pg_catalog.+) $7::pg_catalog.text::pg_catalog.interval
    ),
    $2,
    $3,
    $4,
    $5::pg_catalog.jsonb,
    $6
)
returning $1
