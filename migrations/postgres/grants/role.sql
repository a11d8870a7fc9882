do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'pillarbox_role') then
        create role pillarbox_role nologin;
    end if;
end
$$;
