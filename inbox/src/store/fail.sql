-- Counts a failed attempt, and returns how many there were: $1 consumer, $2 identity, $3 error, $4 and $5 id and source
-- as plain texts.
insert into pillarbox.inbox_failure as failure (consumer, event_id, attempts, last_error, id, source)
values ($1, $2, 1, $3, $4, $5)
on conflict (consumer, event_id) do update
set
    attempts = failure.attempts operator(pg_catalog.+) 1,
    started = 0,
    last_error = excluded.last_error,
    first_failed_at = case
        when failure.attempts operator(pg_catalog.=) 0 and failure.outages operator(pg_catalog.=) 0 and failure.uncounted operator(pg_catalog.=) 0
            then pg_catalog.clock_timestamp()
        else failure.first_failed_at
    end,
    last_failed_at = pg_catalog.clock_timestamp()
returning attempts
