-- The oldest transaction of this database that holds back vacuum, of a session or prepared, and how many sessions hide
-- theirs: those of other roles, unless this role is a member of pg_read_all_stats.
select
    (
        select count(*)
        from pg_stat_activity
        where datname = current_database() and backend_type is null
    ) as hidden,
    oldest.*
from (select) as one
left join lateral (
    select *
    from (
        select
            pid,
            null::text as gid,
            usename::text as role,
            application_name as application,
            state,
            extract(epoch from clock_timestamp() - xact_start)::float8 as age
        from pg_stat_activity
        where
            datname = current_database()
            and pid <> pg_backend_pid()
            and backend_type = 'client backend'
            and (backend_xid is not null or backend_xmin is not null)
        union all
        select
            null,
            gid,
            owner::text,
            null,
            'prepared',
            extract(epoch from clock_timestamp() - prepared)::float8
        from pg_prepared_xacts
        where database = current_database()
    ) as open
    order by age desc nulls last
    limit 1
) as oldest on true
