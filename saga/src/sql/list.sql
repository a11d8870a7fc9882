-- Instances, the oldest first: $1 saga, $2 id, $3 status, $4 step, or null for any; $5 only those that are overdue; $6 so
-- many. Without a status and an id, those that have not ended.
--
-- Only columns that the operator's role may read.
select
    saga,
    id,
    step,
    status,
    version,
    pg_catalog.to_char(started_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as started_at,
    pg_catalog.to_char(updated_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as updated_at,
    pg_catalog.to_char(ended_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as ended_at,
    pg_catalog.to_char(deadline_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as deadline_at,
    extract(epoch from pg_catalog.clock_timestamp() operator(pg_catalog.-) started_at)::pg_catalog.float8 as age_seconds,
    case
        when ended_at is null and deadline_at operator(pg_catalog.<) pg_catalog.clock_timestamp()
            then extract(epoch from pg_catalog.clock_timestamp() operator(pg_catalog.-) deadline_at)::pg_catalog.float8
    end as overdue_seconds,
    failure,
    timers::pg_catalog.text as timers,
    array(
        select coalesce(event operator(pg_catalog.->>) 'type', '')
        from pg_catalog.jsonb_array_elements(compensations) with ordinality as kept (event, place)
        order by place desc
    ) as compensations
from pillarbox.saga
where
    ($1::pg_catalog.text is null or saga operator(pg_catalog.=) $1)
    and ($2::pg_catalog.text is null or id operator(pg_catalog.=) $2)
    and case
        when $3::pg_catalog.text is not null then status operator(pg_catalog.=) $3
        else ended_at is null or $2::pg_catalog.text is not null
    end
    and ($4::pg_catalog.text is null or step operator(pg_catalog.=) $4)
    and (
        not $5::pg_catalog.bool
        or (ended_at is null and deadline_at operator(pg_catalog.<) pg_catalog.clock_timestamp())
    )
order by saga.started_at, saga.saga, saga.id
limit $6
