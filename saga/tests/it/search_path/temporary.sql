-- Traps in the temporary schema of this session, where types and views are looked up first unless the path says
-- otherwise: the types and views among the traps in public, which must be there. Operators and functions are never
-- looked up in a temporary schema.
begin;

set local search_path = pg_catalog, pg_temp;

do $$
declare
    one record;
begin
    for one in
        select relname as name from pg_class where relnamespace = 'public'::regnamespace and relkind = 'v'
    loop
        execute format(
            'create view pg_temp.%I as select * from pg_catalog.%I where public.spring(%L)',
            one.name, one.name, 'temporary view ' || one.name);
    end loop;
    for one in
        select typname as name from pg_type where typnamespace = 'public'::regnamespace and typtype = 'd'
    loop
        execute format(
            'create domain pg_temp.%I as pg_catalog.%I check (public.spring(%L))',
            one.name, one.name, 'temporary type ' || one.name);
    end loop;
end
$$;

commit;
