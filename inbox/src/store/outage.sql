-- Records an outage of another party that the event needs. Returns how often that happened and for how many seconds it
-- has lasted: $1 consumer, $2 identity, $3 error, $4 and $5 id and source as plain texts. Counts no attempt.
insert into pillarbox.inbox_failure as failure
    (consumer, event_id, attempts, outages, outage_since, last_error, id, source)
values ($1, $2, 0, 1, pg_catalog.clock_timestamp(), $3, $4, $5)
on conflict (consumer, event_id) do update
set
    outages = failure.outages operator(pg_catalog.+) 1,
    outage_since = coalesce(failure.outage_since, pg_catalog.clock_timestamp()),
    started = 0,
    last_error = excluded.last_error,
    last_failed_at = pg_catalog.clock_timestamp()
returning outages, extract(epoch from pg_catalog.clock_timestamp() operator(pg_catalog.-) outage_since)::bigint
