-- The needed rights that a role does not have. Relations and functions that do not exist are left out.
--
--   $1 role   $2 schema   $3 relations, and functions with their parameters   $4 privileges
--   $5 columns, null for the whole relation
with need as (
    select relation, privilege, col
    from unnest($3::text[], $4::text[], $5::text[]) as need (relation, privilege, col)
)
select need.relation, need.privilege, need.col
from need
join pg_class on pg_class.relname = need.relation and pg_class.relnamespace = to_regnamespace($2)
where not
    case
        when pg_class.relkind = 'S' then has_sequence_privilege($1, pg_class.oid, need.privilege)
        when need.col is null then has_table_privilege($1, pg_class.oid, need.privilege)
        else has_column_privilege($1, pg_class.oid, need.col, need.privilege)
    end
union all
select need.relation, need.privilege, need.col
from need
join pg_proc on pg_proc.proname = split_part(need.relation, '(', 1) and pg_proc.pronamespace = to_regnamespace($2)
where
    need.relation like '%(%'
    and not has_function_privilege($1, pg_proc.oid, need.privilege)
