-- What each role may do with the trail's tables.

-- The trail writes what went through the streams, and where it is. It changes and removes no row: old days are dropped by
-- a function, which drops nothing else, and another one makes the partitions of new days. It has no right on outboxes
-- and inboxes.
grant usage on schema pillarbox to pillarbox_trail;
grant select, insert on pillarbox.trail to pillarbox_trail;
grant select, insert, update on pillarbox.trail_stream to pillarbox_trail;
grant execute on function pillarbox.trail_days(date[]) to pillarbox_trail;
grant execute on function pillarbox.trail_forget(bigint, bigint) to pillarbox_trail;

-- The operator follows events through it. Keys, ids and topics are in it, and no payloads.
grant usage on schema pillarbox to pillarbox_operator;
grant select on pillarbox.trail to pillarbox_operator;
grant select on pillarbox.trail_stream to pillarbox_operator;

-- This table does not exist if another tool has applied the migrations.
do $$
begin
    if pg_catalog.to_regclass('pillarbox.trail_migration') is not null then
        grant select on pillarbox.trail_migration to pillarbox_trail, pillarbox_operator;
    end if;
end
$$;

-- Whoever may create objects in schema `public` can put an operator there that the statements of other roles find and
-- then run with their rights. So none of these roles may create objects there, and neither may everybody else, which is
-- the default since Postgres 15. Only a role that may change the schema can revoke this. Without that right there is a
-- warning, and `pillarbox doctor` says whether it still has to be done. If a role must create tables there, grant it
-- that right by name.
do $$
begin
    if exists (select from pg_catalog.pg_namespace where nspname = 'public') then
        revoke create on schema public from public;
        revoke create on schema public from pillarbox_trail, pillarbox_operator;
    end if;
exception
    when insufficient_privilege then
        raise warning 'create on schema public was not revoked: have its owner do it';
end
$$;
