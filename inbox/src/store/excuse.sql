-- Notes a failure that is not counted as an attempt, and says how many there were: $1 consumer, $2 event id, $3 error.
insert into pillarbox.inbox_failure as failure (consumer, event_id, attempts, uncounted, last_error)
values ($1, $2, 0, 1, $3)
on conflict (consumer, event_id) do update
set
    uncounted = failure.uncounted + 1,
    started = 0,
    last_error = excluded.last_error,
    last_failed_at = clock_timestamp()
returning uncounted
