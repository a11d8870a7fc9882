-- What each role may do with the inbox's tables.

-- The consumer records what it has handled, counts failed attempts, and gives events up. It removes its records and
-- resolved dead letters once they are past the retention, and a record also when an event is to be handled after all.
-- Before that it locks the row, which needs the right to update one column. It cannot touch the outbox: a handler that
-- publishes must be a writer too (`grant pillarbox_writer to pillarbox_consumer`). Its handlers need their own rights
-- on the service's tables.
grant usage on schema pillarbox to pillarbox_consumer;
grant select, insert, update (processed_at), delete on pillarbox.inbox to pillarbox_consumer;
grant select, insert, update, delete on pillarbox.inbox_forgotten to pillarbox_consumer;
grant select, insert, update, delete on pillarbox.inbox_failure to pillarbox_consumer;
grant select, insert, update, delete on pillarbox.inbox_own_death to pillarbox_consumer;
grant select, insert, update, delete on pillarbox.inbox_dead_letter to pillarbox_consumer;
-- Its processes tell each other which partitions each of them has.
grant select, insert, update, delete on pillarbox.inbox_process to pillarbox_consumer;
-- A service with HTTP commands is a consumer too: it looks up and stores answers, and removes old ones itself. Before
-- that it locks them, which needs the right to update one column.
grant select, insert, update (answered_at), delete on pillarbox.inbox_request to pillarbox_consumer;

-- The operator looks at dead letters and resolves them. If a letter is retried, its consumer handles it.
grant usage on schema pillarbox to pillarbox_operator;
grant select on pillarbox.inbox to pillarbox_operator;
grant select on pillarbox.inbox_dead_letter to pillarbox_operator;
grant select on pillarbox.inbox_process to pillarbox_operator;
grant update (state, resolved_at) on pillarbox.inbox_dead_letter to pillarbox_operator;
-- It sees how many answers are stored, but neither their content nor whose they are. It removes none, because a repeat
-- of a removed one would run again. Earlier grants gave it all of these rights.
revoke all on pillarbox.inbox_request from pillarbox_operator;
grant select (status, answered_at) on pillarbox.inbox_request to pillarbox_operator;

-- This table does not exist if another tool has applied the migrations.
do $$
begin
    if pg_catalog.to_regclass('pillarbox.inbox_migration') is not null then
        grant select on pillarbox.inbox_migration to pillarbox_operator;
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
        revoke create on schema public from pillarbox_consumer, pillarbox_operator;
    end if;
exception
    when insufficient_privilege then
        raise warning 'create on schema public was not revoked: have its owner do it';
end
$$;
