-- Counts a failed attempt, and says how many there were: $1 consumer, $2 identity, $3 error, $4 and $5 id and
-- source in clear.
insert into pillarbox.inbox_failure as failure (consumer, event_id, attempts, last_error, id, source)
values ($1, $2, 1, $3, $4, $5)
on conflict (consumer, event_id) do update
set
    attempts = failure.attempts + 1,
    started = 0,
    last_error = excluded.last_error,
    first_failed_at = case
        when failure.attempts + failure.outages + failure.uncounted = 0 then clock_timestamp()
        else failure.first_failed_at
    end,
    last_failed_at = clock_timestamp()
returning attempts
