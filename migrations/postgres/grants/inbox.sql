-- What each role may do with the inbox's tables.

-- The consumer: records what it has handled, counts failed attempts, and gives events up. It removes what it
-- recorded when that is past its retention, as it does with dead letters that are resolved, and when an event is
-- to be handled after all; locking a row first
-- takes the right to update one column. It cannot touch the outbox: a handler that publishes is a writer too
-- (`grant pillarbox_writer to pillarbox_consumer`). Its handlers need rights of their own on the
-- service's tables.
grant usage on schema pillarbox to pillarbox_consumer;
grant select, insert, update (processed_at), delete on pillarbox.inbox to pillarbox_consumer;
grant select, insert, update, delete on pillarbox.inbox_forgotten to pillarbox_consumer;
grant select, insert, update, delete on pillarbox.inbox_failure to pillarbox_consumer;
grant select, insert, update, delete on pillarbox.inbox_own_death to pillarbox_consumer;
grant select, insert, update, delete on pillarbox.inbox_dead_letter to pillarbox_consumer;
-- Its processes tell one another which partitions each has.
grant select, insert, update, delete on pillarbox.inbox_process to pillarbox_consumer;
-- A service of HTTP commands is a consumer too: it looks up and stores answers, and removes old ones itself. That
-- locks them first, which takes the right to update one column.
grant select, insert, update (answered_at), delete on pillarbox.inbox_request to pillarbox_consumer;

-- The operator looks at dead letters and resolves them; one that is to be handled again is left to its consumer.
grant usage on schema pillarbox to pillarbox_operator;
grant select on pillarbox.inbox to pillarbox_operator;
grant select on pillarbox.inbox_dead_letter to pillarbox_operator;
grant select on pillarbox.inbox_process to pillarbox_operator;
grant update (state, resolved_at) on pillarbox.inbox_dead_letter to pillarbox_operator;
-- It sees how many answers are stored, but neither what is in them nor whose they are, and removes none: a repeat of
-- a removed one would run again. Earlier grants gave it all of that.
revoke all on pillarbox.inbox_request from pillarbox_operator;
grant select (status, answered_at) on pillarbox.inbox_request to pillarbox_operator;

-- There is no such table if another tool has applied the migrations.
do $$
begin
    if pg_catalog.to_regclass('pillarbox.inbox_migration') is not null then
        grant select on pillarbox.inbox_migration to pillarbox_operator;
    end if;
end
$$;

-- Who may create something in schema `public` can put an operator there that other roles' statements find, and that
-- then runs with their rights. So none of these roles may, and neither may everybody, which is the default since
-- Postgres 15. This takes the right to change that schema; without it there is a warning, and `pillarbox doctor` tells
-- whether it is still to be done. A role that has to create tables there is granted that by name.
do $$
begin
    if exists (select from pg_catalog.pg_namespace where nspname = 'public') then
        revoke create on schema public from public;
        revoke create on schema public from pillarbox_consumer, pillarbox_operator;
    end if;
exception
    when insufficient_privilege then
        raise warning 'create on schema public was not revoked: have its owner do it';
end
$$;
