-- What a role that may create something in a schema could put there, which is called `trapped` here: operators,
-- functions, types and views of every name that the statements use, for every pair of types, in the signatures of
-- pg_catalog and in others that fit better. Whatever of it runs draws from the sequence `sprung`, which a
-- rollback does not undo, and says its name as a warning.
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
    operators constant text[] := array['=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '/', '%', '||', '<<', '|'];
    types constant text[] := array[
        'bigint', 'integer', 'double precision', 'numeric', 'text', 'interval', 'timestamptz', 'uuid', 'bytea', 'name',
        'tid', 'oid', 'text[]', 'integer[]', 'anyelement', 'anyarray'];
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
                    when called in ('=', '<>', '<', '>', '<=', '>=') then 'boolean'
                    when called = '||' then 'text'
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

    -- With the arguments of pg_catalog's own. What cannot be written (internal types) is left out.
    for called, one, other in
        select
            proc.proname,
            pg_get_function_identity_arguments(proc.oid),
            case
                when proc.prokind = 'a' then format_type(proc.prorettype, null)
                else pg_get_function_result(proc.oid)
            end
        from pg_proc as proc
        where
            proc.pronamespace = 'pg_catalog'::regnamespace
            and proc.proname in (
                'array_agg', 'clock_timestamp', 'convert_from', 'count', 'current_setting', 'date_part', 'decode',
                'extract', 'format', 'gen_random_uuid', 'generate_series', 'hashtextextended', 'jsonb_each_text',
                'lower', 'max', 'min', 'now', 'pg_advisory_unlock_all', 'pg_advisory_xact_lock', 'pg_backend_pid',
                'pg_current_xact_id', 'pg_current_xact_id_if_assigned', 'pg_is_in_recovery', 'pg_listening_channels',
                'pg_my_temp_schema', 'pg_postmaster_start_time', 'pg_relation_size', 'pg_stat_get_activity',
                'pg_try_advisory_xact_lock', 'pg_xact_status', 'quote_ident', 'quote_literal', 'set_config',
                'starts_with', 'string_agg', 'to_regclass', 'transaction_timestamp', 'unnest')
    loop
        begin
            execute format(
                'create function trapped.%I(%s) returns %s ' || own, called, one, other,
                format('%s(%s)', called, one), case when other ~ '^(SETOF|TABLE)|^record|^void' then '' else 'null' end);
        exception when others then null;
        end;
    end loop;
    -- What fits a call better than those, or is a word of the grammar in pg_catalog.
    foreach called in array array[
        'hashtextextended(text, integer)', 'format(text, bigint)', 'set_config(text, text, text)',
        'pg_relation_size(text)', 'max(timestamptz)', 'array_agg(integer)', 'generate_series(integer, bigint)',
        'date_part(text, interval)', 'count()', 'extract(text, interval)', 'nullif(text, text)',
        'coalesce(text, text)', 'greatest(integer, bigint)']
    loop
        begin
            execute format(
                'create function trapped.%s returns text ' || own, regexp_replace(called, '^(\w+)', '"\1"'), called, 'null');
        exception when duplicate_function then null;
        end;
    end loop;

    foreach one in array array[
        'pg_class', 'pg_namespace', 'pg_settings', 'pg_roles', 'pg_stat_activity', 'pg_proc', 'pg_type', 'pg_locks',
        'pg_prepared_statements', 'pg_prepared_xacts', 'pg_cursors']
    loop
        execute format(
            'create view trapped.%I as select * from pg_catalog.%I where trapped.spring(%L)', one, one, 'view ' || one);
        execute format('grant select on trapped.%I to public', one);
    end loop;
    -- Types last: from here on, their names may mean these.
    foreach one in array array[
        'jsonb', 'xid', 'xid8', 'tid', 'uuid', 'text', 'bytea', 'timestamptz', 'float8', 'int8', 'int4', 'name', 'oid']
    loop
        execute format(
            'create domain trapped.%I as pg_catalog.%I check (trapped.spring(%L))', one, one, 'type ' || one);
    end loop;
end
$$;
