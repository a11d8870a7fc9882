-- The sagas: instances that have not ended, those whose deadline is past, those that have failed, and the age of the
-- oldest that has not ended, in seconds. At most $1 of each kind are looked at.
select
    saga,
    count(*) filter (where ended_at is null),
    count(*) filter (where ended_at is null and deadline_at < clock_timestamp()),
    count(*) filter (where status = 'failed'),
    extract(epoch from clock_timestamp() - min(started_at) filter (where ended_at is null))::float8
from (
    (select saga, status, started_at, ended_at, deadline_at from pillarbox.saga where ended_at is null limit $1)
    union all
    (select saga, status, started_at, ended_at, deadline_at from pillarbox.saga where status = 'failed' limit $1)
) as counted
group by saga
order by saga
