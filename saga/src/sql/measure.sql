-- How many instances are open, by saga, step and status; how many of the step are overdue, and how old the oldest is; and
-- how many have failed. A saga with no open instances has no row of those.
select
    saga,
    step,
    status,
    pg_catalog.count(*)::pg_catalog.float8 as instances,
    pg_catalog.sum(
        pg_catalog.count(*) filter (where deadline_at operator(pg_catalog.<) pg_catalog.clock_timestamp())
    ) over (partition by saga, step)::pg_catalog.float8 as overdue,
    extract(
        epoch from pg_catalog.clock_timestamp()
        operator(pg_catalog.-) pg_catalog.min(pg_catalog.min(started_at)) over (partition by saga, step)
    )::pg_catalog.float8 as oldest_age
from pillarbox.saga
where ended_at is null
group by saga, step, status

union all

select saga, '', 'failed', pg_catalog.count(*)::pg_catalog.float8, 0, 0
from pillarbox.saga
where status operator(pg_catalog.=) 'failed'
group by saga
