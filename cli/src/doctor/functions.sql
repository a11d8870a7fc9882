-- Which of these functions a schema does not have: $1 schema, $2 names.
select wanted
from unnest($2::text[]) as wanted
where not exists (
    select
    from pg_proc
    where proname = wanted and pronamespace = (select oid from pg_namespace where nspname = $1)
)
