-- What the service itself has set in this session, read before a handler uses it. At the end of the transaction, the
-- handler's own settings are told from these.
--
-- $1 is the advisory lock that the inbox itself has taken in this transaction, or null.
--
-- Roles come last, because settings that only a stronger role may set must be restored before that role is given up.
select kind, name, value
from (
    select 1 as place, 'setting' as kind, name, setting as value
    from pg_catalog.pg_settings
    where source operator(pg_catalog.=) 'session'
    union all
    select 2, 'setting', 'session_authorization', session_user::pg_catalog.text
    from pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) as mine
    inner join pg_catalog.pg_roles as login on login.oid operator(pg_catalog.=) mine.usesysid
    where login.rolname operator(pg_catalog.<>) session_user
    union all
    select 3, 'setting', 'role', pg_catalog.current_setting('role')
    where pg_catalog.current_setting('role') operator(pg_catalog.<>) 'none'
    union all
    select 4, 'locks', '', ''
    where exists (
        select
        from pg_catalog.pg_locks
        where
            locktype operator(pg_catalog.=) 'advisory'
            and pid operator(pg_catalog.=) pg_catalog.pg_backend_pid()
            and ((classid::bigint operator(pg_catalog.<<) 32) operator(pg_catalog.|) objid::bigint)
            operator(pg_catalog.<>) coalesce($1::bigint, 0::bigint)
    )
    union all
    select 5, 'temporary', '', ''
    where exists (
        select
        from pg_catalog.pg_class
        where relnamespace operator(pg_catalog.=) pg_catalog.pg_my_temp_schema()
    )
    union all
    select 6, 'listens', '', ''
    where exists (select from pg_catalog.pg_listening_channels() as channel)
    union all
    select 7, 'prepared', pg_catalog.quote_ident(name), ''
    from pg_catalog.pg_prepared_statements
    where from_sql
) as found
order by place
