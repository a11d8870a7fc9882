-- Shows that this database can do a consumer's work, and returns when its server started. Sent as a simple query over a
-- connection of its own, in a transaction that is rolled back.
--
-- A standby fails at the insert, and so does a server without disk space or memory. The text is random, so that
-- compression cannot shrink it and it takes pages of its own.
insert into pillarbox.inbox_failure (consumer, event_id, attempts, last_error)
select 'pillarbox probe', pg_catalog.gen_random_uuid()::pg_catalog.text, 0, pg_catalog.string_agg(part.uuid, '')
from (
    select pg_catalog.gen_random_uuid()::pg_catalog.text as uuid
    from pg_catalog.generate_series(1, 1000)
) as part
returning pg_catalog.pg_postmaster_start_time()::pg_catalog.text
