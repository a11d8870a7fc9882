-- What each role may do with the outbox's tables.

-- The writer: the service that publishes events. It writes, and reads nothing back. Without `txid`,
-- `position` and `created_at` in the list, it cannot say when or in which order it wrote; these have
-- defaults, and an identity column asks for no right on its sequence.
grant usage on schema pillarbox to pillarbox_writer;
grant insert (event_id, event_type, topic, key, headers, payload) on pillarbox.outbox to pillarbox_writer;

-- The relay reads the outbox and removes what is past its retention. It never writes events, and changes none.
grant usage on schema pillarbox to pillarbox_relay;
grant select, delete on pillarbox.outbox to pillarbox_relay;
-- Its own row: cursor and lease. A relay cannot forget a relay, its own row or another's.
grant select, insert, update on pillarbox.relay to pillarbox_relay;
-- The places it can go back to.
grant select, insert, delete on pillarbox.relay_checkpoint to pillarbox_relay;
-- Who else runs, so that several processes share several outboxes.
grant select, insert, update, delete on pillarbox.relay_member to pillarbox_relay;
-- Events set aside, and what became of those that were retried; resolved ones go in time. It cannot change an event
-- there.
grant select, insert, delete on pillarbox.outbox_dead_letter to pillarbox_relay;
grant update (state, reason, error, attempts, dead_at, resolved_at) on pillarbox.outbox_dead_letter to pillarbox_relay;
-- For `pillarbox doctor`: is the sequence behind the table, are the tables those that this version knows?
grant select on pillarbox.outbox_position_seq to pillarbox_relay;

-- The operator: `pillarbox status`, `doctor` and `dead-letters`. Sees how many events wait and for which
-- topics, but not what is in them; only of an event that was given up the whole. It writes no events:
-- one that is to be tried again is marked so, and the relay ships it.
grant usage on schema pillarbox to pillarbox_operator;
grant select (xmin, txid, position, topic, created_at) on pillarbox.outbox to pillarbox_operator;
grant select on pillarbox.relay to pillarbox_operator;
grant select on pillarbox.relay_checkpoint to pillarbox_operator;
grant select on pillarbox.relay_member to pillarbox_operator;
grant select on pillarbox.outbox_dead_letter to pillarbox_operator;
grant update (state, resolved_at) on pillarbox.outbox_dead_letter to pillarbox_operator;
grant select on pillarbox.outbox_position_seq to pillarbox_operator;
-- `doctor` names the sessions that hold transactions open only to who may see other roles' sessions. That
-- also shows the text of their statements, so it is left to you, and takes a superuser:
-- grant pg_read_all_stats to pillarbox_operator;

-- There is no such table if another tool has applied the migrations.
do $$
begin
    if pg_catalog.to_regclass('pillarbox.outbox_migration') is not null then
        grant select on pillarbox.outbox_migration to pillarbox_relay, pillarbox_operator;
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
        revoke create on schema public from pillarbox_writer, pillarbox_relay, pillarbox_operator;
    end if;
exception
    when insufficient_privilege then
        raise warning 'create on schema public was not revoked: have its owner do it';
end
$$;
