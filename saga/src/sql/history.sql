-- What happened to an instance: $1 saga, $2 id.
select
    seq,
    pg_catalog.to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at,
    event_id,
    event_type,
    step_before,
    step_after,
    status,
    published::pg_catalog.text as published,
    timers_set::pg_catalog.text as timers_set,
    timers_cancelled::pg_catalog.text as timers_cancelled,
    note
from pillarbox.saga_history
where saga operator(pg_catalog.=) $1 and id operator(pg_catalog.=) $2
order by saga_history.seq
