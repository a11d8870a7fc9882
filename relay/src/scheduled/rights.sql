-- How this role can count scheduled events in the schema $1: by the function, or by reading the table. Not with
-- to_regclass, which fails if the role lacks rights.
select
    exists (
        select
        from pg_proc
        where
            proname = 'release_scheduled'
            and pronamespace = (select oid from pg_namespace where nspname = $1)
            and has_function_privilege(oid, 'execute')
    ) as calls,
    exists (
        select
        from pg_class
        where
            relname = 'outbox_scheduled'
            and relnamespace = (select oid from pg_namespace where nspname = $1)
            and has_column_privilege(oid, 'due_at', 'select')
            and has_column_privilege(oid, 'error', 'select')
    ) as reads
