-- Records many events as handled: $1 consumer, $2 event ids. Returns a row for each event that is recorded, as
-- claim.sql does. About the others, recorded.sql is asked.
--
-- The rows are inserted in the order of the ids, so that two batches with the same events wait for each other and do
-- not deadlock.
with claimed as (
    insert into pillarbox.inbox (consumer, event_id)
    select $1, id
    from pg_catalog.unnest($2::pg_catalog.text[]) as id
    order by id
    on conflict do nothing
    returning event_id
)
select
    $1::pg_catalog.text,
    claimed.event_id,
    failure.attempts,
    pg_catalog.pg_current_xact_id()::pg_catalog.text,
    pg_catalog.pg_backend_pid()
from claimed
left join pillarbox.inbox_failure as failure
    on failure.consumer operator(pg_catalog.=) $1 and failure.event_id operator(pg_catalog.=) claimed.event_id
