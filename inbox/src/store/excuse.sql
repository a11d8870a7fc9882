-- Records a failure that does not count as an attempt, and returns how many there were: $1 consumer, $2 identity, $3
-- error, $4 and $5 id and source as plain texts.
insert into pillarbox.inbox_failure as failure (consumer, event_id, attempts, uncounted, last_error, id, source)
values ($1, $2, 0, 1, $3, $4, $5)
on conflict (consumer, event_id) do update
set
    uncounted = failure.uncounted operator(pg_catalog.+) 1,
    started = 0,
    last_error = excluded.last_error,
    last_failed_at = pg_catalog.clock_timestamp()
returning uncounted
