-- Shows that this database can do a consumer's work, and says since when its server runs. Sent as it is, over a
-- connection of its own, in a transaction that is rolled back.
--
-- A standby, and a server without space or memory, fails at the insert: the text is random, so that it is not
-- compressed to nothing and takes pages of its own.
insert into pillarbox.inbox_failure (consumer, event_id, attempts, last_error)
select 'pillarbox probe', pg_catalog.gen_random_uuid()::pg_catalog.text, 0, pg_catalog.string_agg(part.uuid, '')
from (
    select pg_catalog.gen_random_uuid()::pg_catalog.text as uuid
    from pg_catalog.generate_series(1, 1000)
) as part
returning pg_catalog.pg_postmaster_start_time()::pg_catalog.text
