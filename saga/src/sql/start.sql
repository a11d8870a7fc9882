-- Starts an instance, unless it is there: $1 saga, $2 id, $3 seconds to its deadline, or null. Returns its id if this
-- transaction started it. No row says nothing; find.sql is asked then.
--
-- The insert is the lock: of two that start the same instance, the second waits for the end of the first.
insert into pillarbox.saga (saga, id, state, step, status, version, deadline_at)
values (
    $1,
    $2,
    'null',
    'started',
    'running',
    0,
    pg_catalog.clock_timestamp() operator(pg_catalog.+) pg_catalog.make_interval(secs => $3::double precision)
)
on conflict do nothing
returning id
