-- The objects that a role could put into a schema, called `trapped` here, if it may create objects there: see traps.rs.
create sequence trapped.sprung;
grant usage, select on sequence trapped.sprung to public;

create function trapped.spring(what text) returns boolean language plpgsql as $$
begin
    perform pg_catalog.nextval('trapped.sprung');
    raise warning 'the trap % ran', what;
    return true;
end
$$;

do $$
declare
    operators constant text[] := array[
        '=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '/', '%', '->', '->>', '#>', '#>>', '||', '~', '~~', '!~', '!~~',
        '?', '<<', '|', '&'];
    types constant text[] := array[
        'bigint', 'integer', 'double precision', 'numeric', 'text', 'interval', 'timestamptz', 'jsonb', 'uuid', 'bytea',
        'name', 'xid8', 'pg_lsn', 'tid', 'oid', 'text[]', 'integer[]', 'bigint[]', 'anyelement', 'anyarray'];
    own constant text := 'language plpgsql as $f$ begin perform trapped.spring(%L); return %s; end $f$';
    called text;
    one text;
    other text;
    returned text;
begin
    foreach one in array types loop
        foreach other in array types loop
            foreach returned in array array['boolean', 'interval', 'timestamptz', 'text', 'bigint'] loop
                execute format(
                    'create function trapped.trap_%s(a %s, b %s) returns %s ' || own,
                    replace(returned, ' ', '_'), one, other, returned, format('%s operator %s', one, other), 'null');
            end loop;
            foreach called in array operators loop
                returned := case
                    when called in ('=', '<>', '<', '>', '<=', '>=', '~', '~~') then 'boolean'
                    when called in ('->', '->>', '#>>', '||') then 'text'
                    when called = '*' then 'interval'
                    when one = 'timestamptz' and other = 'timestamptz' then 'interval'
                    when one = 'timestamptz' then 'timestamptz'
                    else 'bigint'
                end;
                execute format(
                    'create operator trapped.%s (leftarg = %s, rightarg = %s, function = trapped.trap_%s)',
                    called, one, other, returned);
            end loop;
        end loop;
    end loop;

    -- Functions with the same arguments as those of pg_catalog. Functions with internal types are left out, because
    -- they cannot be written.
    for called, one, other in
        select proc.proname, pg_get_function_identity_arguments(proc.oid), pg_get_function_result(proc.oid)
        from pg_proc as proc
        where proc.pronamespace = 'pg_catalog'::regnamespace and proc.prokind = 'f'
    loop
        begin
            execute format(
                'create function trapped.%I(%s) returns %s ' || own, called, one, other,
                format('%s(%s)', called, one), case when other ~ '^(SETOF|TABLE)|^record|^void' then '' else 'null' end);
        exception when others then null;
        end;
    end loop;

    -- Aggregates: one for each aggregate of pg_catalog, which counts its input. Statements call some of them with a
    -- filter or with distinct, which a plain function refuses, so aggregates are the better traps.
    create function trapped.collect(state bigint) returns bigint language plpgsql as
        'begin perform trapped.spring(''an aggregate''); return state; end';
    create aggregate trapped.count(*) (sfunc = trapped.collect, stype = bigint, initcond = '0');
    for called, one in
        select proc.proname, format_type(proc.proargtypes[0], null)
        from pg_proc as proc
        where proc.pronamespace = 'pg_catalog'::regnamespace and proc.prokind = 'a' and proc.pronargs = 1
        union
        select 'count', fits.better from unnest(types) as fits (better)
    loop
        begin
            execute format(
                'create function trapped.collect(state bigint, one %s) returns bigint ' || own, one,
                format('%s(%s)', called, one), 'state');
        exception when others then null;
        end;
        begin
            execute format(
                'create aggregate trapped.%I(%s) (sfunc = trapped.collect, stype = bigint, initcond = ''0'')', called, one);
        exception when others then null;
        end;
    end loop;

    -- Functions that match a call better than those above, or whose names are words of the grammar in pg_catalog.
    foreach called in array array[
        'hashtextextended(text, integer)', 'format(text, bigint)', 'set_config(text, text, text)',
        'pg_relation_size(text)', 'generate_series(integer, bigint)', 'date_part(text, interval)',
        'extract(text, interval)', 'nullif(text, text)', 'coalesce(text, text)', 'greatest(integer, bigint)',
        'string_agg(text, text)', 'jsonb_object_agg(text, text)']
    loop
        begin
            execute format(
                'create function trapped.%s returns text ' || own, regexp_replace(called, '^(\w+)', '"\1"'), called, 'null');
        exception when duplicate_function then null;
        end;
    end loop;

    foreach one in array array[
        'pg_class', 'pg_namespace', 'pg_settings', 'pg_roles', 'pg_stat_activity', 'pg_proc', 'pg_type', 'pg_locks',
        'pg_prepared_statements', 'pg_prepared_xacts', 'pg_cursors', 'pg_constraint', 'pg_sequence',
        'pg_trigger']
    loop
        execute format(
            'create view trapped.%I as select * from pg_catalog.%I where trapped.spring(%L)', one, one, 'view ' || one);
        execute format('grant select on trapped.%I to public', one);
    end loop;
    -- Types come last, because from here on their names may mean these.
    foreach one in array array[
        'jsonb', 'xid', 'xid8', 'pg_snapshot', 'tid', 'uuid', 'text', 'bytea', 'timestamptz', 'pg_lsn', 'float8', 'int8',
        'int4', 'name', 'oid', 'regclass']
    loop
        execute format(
            'create domain trapped.%I as pg_catalog.%I check (trapped.spring(%L))', one, one, 'type ' || one);
    end loop;
end
$$;
