-- Locks an instance for an operator: $1 saga, $2 id. Its state, which an operator may not read, is left out.
select
    step,
    status,
    version,
    timers::pg_catalog.text as timers,
    compensations::pg_catalog.text as compensations,
    failure,
    current_user::pg_catalog.text as role
from pillarbox.saga
where saga operator(pg_catalog.=) $1 and id operator(pg_catalog.=) $2
for update
