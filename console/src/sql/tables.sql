-- Which tables a schema has: $1 the schema. Not with to_regclass, which also fails if the role lacks rights.
select
    coalesce(bool_or(relname = 'outbox'), false),
    coalesce(bool_or(relname = 'inbox'), false)
from pg_class
where relnamespace = (select oid from pg_namespace where nspname = $1)
