-- Records many events as handled: $1 consumer, $2 event ids. A row for each that is recorded, as of claim.sql; none for
-- the others, of which recorded.sql says more.
--
-- In the order of their ids, so that two batches with the same events wait for one another, and do not deadlock.
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
