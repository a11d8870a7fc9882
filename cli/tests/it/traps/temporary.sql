-- Triggers on the relay's tables that leave traps in the temporary schema of whatever session fires them. What runs of
-- them draws from the sequence `sprung`, which a rollback does not undo. `laid` has the sessions.
create sequence public.sprung;
create table public.laid (session integer);

create function public.spring(what text) returns boolean language plpgsql as $$
begin
    perform pg_catalog.nextval('public.sprung');
    raise warning 'the trap % ran', what;
    return true;
end
$$;

create function public.lay() returns trigger language plpgsql as $$
declare
    one pg_catalog.text;
begin
    if not exists (select from public.laid where session operator(pg_catalog.=) pg_catalog.pg_backend_pid()) then
        insert into public.laid values (pg_catalog.pg_backend_pid());
        foreach one in array array['pg_class', 'pg_namespace', 'pg_settings', 'pg_roles', 'pg_stat_activity', 'pg_type'] loop
            execute pg_catalog.format(
                'create view pg_temp.%I as select * from pg_catalog.%I where public.spring(%L)', one, one, 'view ' || one);
        end loop;
        foreach one in array array[
            'jsonb', 'xid', 'xid8', 'pg_snapshot', 'uuid', 'text', 'bytea', 'timestamptz', 'pg_lsn', 'float8', 'int8', 'int4']
        loop
            execute pg_catalog.format(
                'create domain pg_temp.%I as pg_catalog.%I check (public.spring(%L))', one, one, 'type ' || one);
        end loop;
    end if;
    if tg_op operator(pg_catalog.=) 'DELETE' then
        return old;
    end if;
    return new;
end
$$;

create trigger lay before insert or update on pillarbox.relay for each row execute function public.lay();
create trigger lay before insert or update on pillarbox.outbox_dead_letter for each row execute function public.lay();
create trigger lay before delete on pillarbox.outbox for each row execute function public.lay();
