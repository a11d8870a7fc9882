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
-- They say how they are, and read what an operator has paused or limited. A piece of the rate is taken by moving one
-- column forward.
grant select, insert, update, delete on pillarbox.inbox_member to pillarbox_consumer;
grant select on pillarbox.inbox_pause to pillarbox_consumer;
grant select, update (next_at) on pillarbox.inbox_rate to pillarbox_consumer;
-- It removes operators' actions that are older than a year, and records those of its own service.
grant select (id, at), delete on pillarbox.operator_action to pillarbox_consumer;
grant insert (who, what, target, count, note, run, letters) on pillarbox.operator_action to pillarbox_consumer;
-- A service with HTTP commands is a consumer too: it looks up and stores answers, and removes old ones itself. Before
-- that it locks them, which needs the right to update one column.
grant select, insert, update (answered_at), delete on pillarbox.inbox_request to pillarbox_consumer;
-- A consumer with sagas writes their instances and what happened to them, and removes old ones. Sagas publish events, so
-- such a consumer must be a writer too.
grant select, insert, update, delete on pillarbox.saga to pillarbox_consumer;
grant select, insert, delete on pillarbox.saga_history to pillarbox_consumer;

-- The operator looks at dead letters and resolves them. If a letter is retried, its consumer handles it.
grant usage on schema pillarbox to pillarbox_operator;
grant select on pillarbox.inbox to pillarbox_operator;
grant select on pillarbox.inbox_dead_letter to pillarbox_operator;
grant select on pillarbox.inbox_process to pillarbox_operator;
grant update (state, resolved_at) on pillarbox.inbox_dead_letter to pillarbox_operator;
-- It edits a dead letter before it is retried. The content with which the event was published stays beside it.
grant update (headers, payload, edited_at, original_headers, original_payload) on pillarbox.inbox_dead_letter to pillarbox_operator;
-- It sees how consumers are, and which failures are tried again. It pauses consumers and limits their rate.
grant select on pillarbox.inbox_member to pillarbox_operator;
grant select (consumer, event_id, id, source, attempts, outages, uncounted, first_failed_at, last_failed_at, last_error) on pillarbox.inbox_failure to pillarbox_operator;
grant select on pillarbox.inbox_forgotten to pillarbox_operator;
grant select, insert, update, delete on pillarbox.inbox_pause to pillarbox_operator;
grant select, insert, update, delete on pillarbox.inbox_rate to pillarbox_operator;
-- Everything that it changes is recorded. It can add to the record, and change nothing in it.
grant select on pillarbox.operator_action to pillarbox_operator;
grant insert (who, what, target, count, note, run, letters) on pillarbox.operator_action to pillarbox_operator;
-- It sees how many answers are stored, but neither their content nor whose they are. It removes none, because a repeat
-- of a removed one would run again. Earlier grants gave it all of these rights.
revoke all on pillarbox.inbox_request from pillarbox_operator;
grant select (status, answered_at) on pillarbox.inbox_request to pillarbox_operator;
-- It sees how far sagas are, but not their state, which is the service's. It ends an instance by hand, which its history
-- tells. To publish compensations, it must be a writer too (`grant pillarbox_writer to pillarbox_operator`).
grant select (saga, id, step, status, version, started_at, updated_at, ended_at, deadline_at, timers, compensations, failure) on pillarbox.saga to pillarbox_operator;
grant update (status, version, updated_at, ended_at, timers, compensations, failure) on pillarbox.saga to pillarbox_operator;
grant select, insert on pillarbox.saga_history to pillarbox_operator;

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
