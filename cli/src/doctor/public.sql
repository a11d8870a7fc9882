-- Whether every role may create objects in schema `public`, as was the default before Postgres 15.
select exists (
    select
    from pg_namespace
    cross join lateral aclexplode(coalesce(nspacl, acldefault('n', nspowner))) as granted
    where nspname = 'public' and granted.grantee = 0 and granted.privilege_type = 'CREATE'
)
