-- What each role may do with the outbox's tables.

-- The writer is the service that publishes events. It writes, and reads nothing back. `txid`, `position`,
-- `created_at` and `synchronous` are not in the list, so it cannot set when, how or in which order it wrote. These
-- columns have defaults, and an identity column needs no right on its sequence.
grant usage on schema pillarbox to pillarbox_writer;
grant insert (event_id, event_type, topic, key, headers, payload) on pillarbox.outbox to pillarbox_writer;
-- It schedules events and cancels them. It sees their ids and nothing else of them.
grant insert (event_id, due_at, event_type, topic, key, headers, payload) on pillarbox.outbox_scheduled to pillarbox_writer;
grant delete on pillarbox.outbox_scheduled to pillarbox_writer;
grant select (event_id) on pillarbox.outbox_scheduled to pillarbox_writer;

-- The relay reads the outbox and removes what is past its retention. It never writes or changes events.
grant usage on schema pillarbox to pillarbox_relay;
grant select, delete on pillarbox.outbox to pillarbox_relay;
-- The one exception: this function moves scheduled events into the outbox when they are due, under the relay's lease.
-- The relay has no right on the table of scheduled events itself.
grant execute on function pillarbox.release_scheduled(text, bigint, integer, boolean, timestamptz) to pillarbox_relay;
-- Its own row, with cursor and lease. A relay cannot delete any relay's row.
grant select, insert, update on pillarbox.relay to pillarbox_relay;
-- The checkpoints to which it can go back.
grant select, insert, delete on pillarbox.relay_checkpoint to pillarbox_relay;
-- The other processes, so that several processes can share several outboxes.
grant select, insert, update, delete on pillarbox.relay_member to pillarbox_relay;
-- Dead letters, and the result of those that were retried. It removes resolved ones after a time. It cannot change the
-- event of a letter.
grant select, insert, delete on pillarbox.outbox_dead_letter to pillarbox_relay;
grant update (state, reason, error, attempts, dead_at, resolved_at) on pillarbox.outbox_dead_letter to pillarbox_relay;
-- It removes operators' actions that are older than a year, and records replays, which run under its role.
grant select (id, at) on pillarbox.operator_action to pillarbox_relay;
grant delete on pillarbox.operator_action to pillarbox_relay;
grant insert (who, what, target, count, note, run, letters) on pillarbox.operator_action to pillarbox_relay;
-- The relay's cursor depends on how far the sequence is. For another table that takes the name `outbox`, grant this on
-- the sequence that it has.
grant select on pillarbox.outbox_position_seq to pillarbox_relay;

-- The operator runs `pillarbox status`, `doctor` and `dead-letters`. It sees how many events wait and for which topics,
-- but not their content. It sees the whole event only in a dead letter. It writes no events: it marks a letter that is
-- to be tried again, and the relay ships it.
grant usage on schema pillarbox to pillarbox_operator;
grant select (xmin, txid, position, topic, created_at) on pillarbox.outbox to pillarbox_operator;
grant select on pillarbox.relay to pillarbox_operator;
grant select on pillarbox.relay_checkpoint to pillarbox_operator;
grant select on pillarbox.relay_member to pillarbox_operator;
grant select on pillarbox.outbox_dead_letter to pillarbox_operator;
grant update (state, resolved_at) on pillarbox.outbox_dead_letter to pillarbox_operator;
-- It edits a dead letter before it is retried. The content with which the event was published stays beside it.
grant update (headers, payload, edited_at, original_headers, original_payload) on pillarbox.outbox_dead_letter to pillarbox_operator;
-- Everything that it changes is recorded. It can add to the record, and change nothing in it.
grant select on pillarbox.operator_action to pillarbox_operator;
grant insert (who, what, target, count, note, run, letters) on pillarbox.operator_action to pillarbox_operator;
grant select on pillarbox.outbox_position_seq to pillarbox_operator;
-- It sees which scheduled events are due when, without their content, and cancels them.
grant select (event_id, due_at, event_type, topic, created_at, error, tried_at) on pillarbox.outbox_scheduled to pillarbox_operator;
grant delete on pillarbox.outbox_scheduled to pillarbox_operator;
-- `doctor` names the sessions that hold transactions open only if its role may see the sessions of other roles. That
-- right also shows the text of their statements, so you must decide about it, and only a superuser can grant it:
-- grant pg_read_all_stats to pillarbox_operator;

-- This table does not exist if another tool has applied the migrations.
do $$
begin
    if pg_catalog.to_regclass('pillarbox.outbox_migration') is not null then
        grant select on pillarbox.outbox_migration to pillarbox_relay, pillarbox_operator;
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
        revoke create on schema public from pillarbox_writer, pillarbox_relay, pillarbox_operator;
    end if;
exception
    when insufficient_privilege then
        raise warning 'create on schema public was not revoked: have its owner do it';
end
$$;
