-- How the session of this application name stands, by the eyes of another one of its role: whether it works, and whom it
-- waits for. No row: the server does not know it.
select
    session.state = 'active' as works,
    (
        select
            string_agg(
                format('session %s (role %s, %L, %s)', holder.pid, holder.usename, holder.application_name, holder.state),
                ', '
                order by holder.pid
            )
        from pg_stat_activity as holder
        where holder.pid = any (pg_blocking_pids(session.pid))
    ) as waits_for
from pg_stat_activity as session
where session.application_name = $1 and session.datname = current_database()
order by session.pid
limit 1
