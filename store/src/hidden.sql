-- Tables whose rows may be hidden from a role: $1 schema, $2 tables, $3 role, or null for the session's own role.
--
-- For the session's role, Postgres answers. For another role, these rules apply: superusers and roles with bypassrls see
-- all rows. So do roles with the owner's rights, unless row-level security is forced on the owner too. Names are looked
-- up only in pg_catalog, because the session may be a service's.
select
    relation.relname::pg_catalog.text as name,
    coalesce($3::pg_catalog.text, current_user::pg_catalog.text) as role
from pg_catalog.pg_class as relation
join pg_catalog.pg_namespace as space on space.oid operator(pg_catalog.=) relation.relnamespace
where
    space.nspname operator(pg_catalog.=) $1::pg_catalog.name
    and relation.relname operator(pg_catalog.=) any ($2::pg_catalog.name[])
    and case
        when $3::pg_catalog.text is null then pg_catalog.row_security_active(relation.oid)
        else
            relation.relrowsecurity
            and not exists (
                select
                from pg_catalog.pg_roles as role
                where
                    role.rolname operator(pg_catalog.=) $3::pg_catalog.name
                    and (role.rolsuper or role.rolbypassrls)
            )
            and (
                relation.relforcerowsecurity
                or not pg_catalog.pg_has_role($3::pg_catalog.name, relation.relowner, 'usage')
            )
    end
order by relation.relname
