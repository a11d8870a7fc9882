-- Notes that somebody was away whom the event needs, and says how often that was: $1 consumer, $2 event id, $3 error.
-- No attempt is counted.
insert into pillarbox.inbox_failure as failure (consumer, event_id, attempts, outages, last_error)
values ($1, $2, 0, 1, $3)
on conflict (consumer, event_id) do update
set
    outages = failure.outages + 1,
    started = 0,
    last_error = excluded.last_error,
    last_failed_at = clock_timestamp()
returning outages
