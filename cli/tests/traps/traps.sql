-- What a role that may create something in `public` could put there: a function for every name that pg_catalog has, an
-- operator, a type and a view for those that Pillarbox's statements use, in the same signatures as in pg_catalog, and in others that fit better
-- than those. Whatever of it runs draws from the sequence `sprung`, which a rollback does not undo.
create sequence public.sprung;
grant usage on sequence public.sprung to public;

create function public.spring() returns boolean language plpgsql as $$
begin
    perform pg_catalog.nextval('public.sprung');
    return true;
end
$$;

do $$
declare
    names constant text[] := array[
        '=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '/', '%', '->', '->>', '#>', '#>>', '||', '~', '~~', '!~', '!~~', '?',
        '<<', '|', '&'];
    types constant text[] := array[
        'bigint', 'integer', 'double precision', 'numeric', 'text', 'interval', 'timestamptz', 'jsonb', 'uuid', 'name',
        'xid8', 'pg_lsn', 'oid', 'text[]', 'bigint[]'];
    operator text;
    one text;
    other text;
    returned text;
    made integer := 0;
begin
    foreach one in array types loop
        foreach other in array types loop
            foreach returned in array array['boolean', 'interval', 'timestamptz', 'text', 'bigint'] loop
                execute format(
                    'create function public.trap_%s(a %s, b %s) returns %s language plpgsql as '
                    '$f$ begin perform public.spring(); return null; end $f$',
                    replace(returned, ' ', '_'), one, other, returned);
            end loop;
            foreach operator in array names loop
                returned := case
                    when operator in ('=', '<>', '<', '>', '<=', '>=', '~', '~~') then 'boolean'
                    when operator in ('->', '->>', '#>>', '||') then 'text'
                    when operator = '*' then 'interval'
                    when one = 'timestamptz' and other = 'timestamptz' then 'interval'
                    when one = 'timestamptz' then 'timestamptz'
                    else 'bigint'
                end;
                execute format(
                    'create operator public.%s (leftarg = %s, rightarg = %s, function = public.trap_%s)',
                    operator, one, other, returned);
                made := made + 1;
            end loop;
        end loop;
    end loop;

    for one, other, returned in
        select
            proc.proname,
            pg_get_function_identity_arguments(proc.oid),
            pg_get_function_result(proc.oid)
        from pg_proc as proc
        where
            proc.pronamespace = 'pg_catalog'::regnamespace
            and proc.prokind = 'f'
    loop
        begin
            execute format(
                'create function public.%I(%s) returns %s language plpgsql as '
                '$f$ begin perform public.spring(); return; end $f$', one, other, returned);
        exception when others then
            begin
                execute format(
                    'create function public.%I(%s) returns %s language plpgsql as '
                    '$f$ begin perform public.spring(); return null; end $f$', one, other, returned);
            exception when others then null;
            end;
        end;
    end loop;

    -- Better matches than the inexact calls would have, and aggregates that are none.
    execute 'create function public.count() returns bigint language sql as ''select pg_catalog.nextval(''''public.sprung'''')''';
    execute 'create function public.min(timestamptz) returns timestamptz language plpgsql as $f$ begin perform public.spring(); return null; end $f$';
    execute 'create function public.min(bigint) returns bigint language plpgsql as $f$ begin perform public.spring(); return null; end $f$';
    execute 'create function public.max(bigint) returns bigint language plpgsql as $f$ begin perform public.spring(); return null; end $f$';
    execute 'create function public.min(integer) returns integer language plpgsql as $f$ begin perform public.spring(); return null; end $f$';
    execute 'create function public.hashtextextended(text, integer) returns bigint language plpgsql as $f$ begin perform public.spring(); return 0; end $f$';
    execute 'create function public.set_config(text, text, text) returns text language plpgsql as $f$ begin perform public.spring(); return null; end $f$';

    foreach one in array array['pg_class', 'pg_namespace', 'pg_settings', 'pg_roles', 'pg_stat_activity', 'pg_proc', 'pg_type'] loop
        execute format('create view public.%I as select * from pg_catalog.%I where public.spring()', one, one);
        execute format('grant select on public.%I to public', one);
    end loop;
    -- Types last: from here on, their names mean these.
    foreach one in array array['jsonb', 'xid8', 'pg_snapshot', 'uuid', 'text', 'bytea', 'timestamptz', 'pg_lsn', 'float8'] loop
        execute format('create domain public.%I as pg_catalog.%I check (public.spring())', one, one);
    end loop;
end
$$;
