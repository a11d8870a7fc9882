-- What a consumer has failed to handle, or given up: $1 its name.
--
-- A row of inbox_failure without any of the three counts is an event that is merely in progress again.
select
    (
        select pg_catalog.count(*) from pillarbox.inbox_failure as failure
        where failure.consumer operator(pg_catalog.=) $1
            and (
                failure.attempts operator(pg_catalog.>) 0
                or failure.outages operator(pg_catalog.>) 0
                or failure.uncounted operator(pg_catalog.>) 0
            )
    ) as failing,
    (
        select pg_catalog.concat(coalesce(failure.id, failure.event_id), ': ', failure.last_error)
        from pillarbox.inbox_failure as failure
        where failure.consumer operator(pg_catalog.=) $1
            and (
                failure.attempts operator(pg_catalog.>) 0
                or failure.outages operator(pg_catalog.>) 0
                or failure.uncounted operator(pg_catalog.>) 0
            )
        order by failure.first_failed_at
        limit 1
    ) as failure,
    (
        select pg_catalog.count(*) from pillarbox.inbox_dead_letter as letter
        where letter.consumer operator(pg_catalog.=) $1 and letter.state operator(pg_catalog.=) 'parked'
    ) as parked,
    (
        select pg_catalog.count(*) from pillarbox.inbox_dead_letter as letter
        where letter.consumer operator(pg_catalog.=) $1 and letter.state operator(pg_catalog.=) 'dead'
    ) as dead,
    (
        select pg_catalog.concat(letter.event_id, ' (', letter.event_type, ', ', letter.reason, '): ', letter.error)
        from pillarbox.inbox_dead_letter as letter
        where letter.consumer operator(pg_catalog.=) $1 and letter.state operator(pg_catalog.=) 'dead'
        order by letter.position
        limit 1
    ) as letter
