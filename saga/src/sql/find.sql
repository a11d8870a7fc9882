-- Finds and locks an instance: $1 saga, $2 id.
select
    state::pg_catalog.text as state,
    step,
    status,
    version,
    timers::pg_catalog.text as timers,
    compensations::pg_catalog.text as compensations,
    failure
from pillarbox.saga
where saga operator(pg_catalog.=) $1 and id operator(pg_catalog.=) $2
for update
