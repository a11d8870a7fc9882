-- The outbox of a service, and the tables of the relay.
--
-- Plain SQL: apply it with `pillarbox migrate outbox`, with `pillarbox_outbox::migrate`, with psql, or
-- with any migration tool. To use another schema, replace the word `pillarbox` throughout, as `--schema`
-- does.

-- `create schema if not exists` would need the right to create schemas even if the schema exists.
do $$
begin
    if to_regnamespace('pillarbox') is null then
        create schema pillarbox;
    end if;
end
$$;

-- One row for each event, written in the same transaction as the business data.
--
-- `txid` comes before `position` on purpose: defaults are evaluated from left to right, so a row's
-- position is always drawn after its transaction has its id. The relay's cursor relies on that. It also relies
-- on positions being handed out in order across all sessions, which is why the sequence has cache 1.
--
-- The relay never updates these rows. A service in any language may insert (event_type, topic, key, headers, payload).
--
-- The size checks refuse what no broker can ever store: nats-server takes messages up to 64 MiB, and JetStream takes
-- headers up to 64 KiB. The checks are generous, so that the broker's own limits decide about the rest. A position must
-- be above zero, because every cursor begins there: a row below it, which `overriding system value` could insert, would
-- never be read.
create table if not exists pillarbox.outbox (
    txid       xid8        not null default pg_current_xact_id(),
    position   bigint      generated always as identity (cache 1) primary key check (position > 0),
    event_id   uuid        not null default gen_random_uuid(),
    event_type text        not null check (event_type <> ''),
    topic      text        not null check (topic <> ''),
    key        text        null,
    headers    jsonb       not null default '{}' check (jsonb_typeof(headers) = 'object'),
    payload    bytea       not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint outbox_event_type_size check (octet_length(event_type) <= 65536),
    constraint outbox_topic_size check (octet_length(topic) <= 65536),
    constraint outbox_key_size check (octet_length(key) <= 65536),
    constraint outbox_headers_size check (octet_length(headers::text) <= 1048576),
    constraint outbox_payload_size check (octet_length(payload) <= 67108864)
);

comment on table pillarbox.outbox is
    'Events waiting for, or already shipped by, the Pillarbox relay. Insert (event_type, topic, key, headers, payload); never update.';
comment on column pillarbox.outbox.key is
    'The ordering key: events with the same key are delivered in the order of their commits, provided that their writers serialise on that key.';
comment on column pillarbox.outbox.headers is
    'Message headers by name, string to string: the remaining CloudEvents attributes (ce-source, ce-subject, traceparent, ...) and the application''s own.';

-- Payloads seldom compress well. Do not compress them, so that the writer spends no time on it.
alter table pillarbox.outbox alter column payload set storage external;
-- Headers are not compressed either, so that the relay can see their size without unpacking them.
alter table pillarbox.outbox alter column headers set storage external;

-- Rows that a subscription brings carry the publisher's transaction ids, and their positions may be behind those given
-- out here. So this trigger gives them the id of the current transaction. If their position is behind, or taken, it
-- also gives them the next one. "Behind" means behind the sequence as it was when the transaction brought its first
-- row. A first copy brings rows in the order in which they are on disk, and so it keeps the order of their positions. A
-- taken position does not stop the subscription.
--
-- A subscription does not bring the sequence. If a row keeps its position, the trigger brings the sequence up to it.
-- Otherwise the first writers here would draw positions that are taken, and would be refused. The trigger draws
-- positions until it has that one, which is safe beside writers that draw from the same sequence. It skips only a large
-- gap with setval. A row does not keep a position that no sequence reaches, because that would leave no positions for
-- the writers.
--
-- The trigger fires only in sessions that replicate, so it costs an ordinary writer nothing.
create or replace function pillarbox.outbox_replicated() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    above bigint := nullif(current_setting('pillarbox.replicated_above', true), '')::bigint;
    reached bigint;
begin
    new.txid := pg_current_xact_id();
    -- If the sequence was not called since it was created or restarted, its next value is last_value itself.
    select case when is_called then last_value else last_value - 1 end into reached from pillarbox.outbox_position_seq;
    if above is null then
        above := reached;
        perform set_config('pillarbox.replicated_above', above::text, true);
    end if;
    if
        new.position <= above
        or new.position > 4611686018427387904
        or exists (select from pillarbox.outbox where position = new.position)
    then
        new.position := nextval('pillarbox.outbox_position_seq');
    elsif new.position > reached then
        if new.position - reached > 1000 then
            perform setval('pillarbox.outbox_position_seq', new.position, false);
        end if;
        loop
            reached := nextval('pillarbox.outbox_position_seq');
            exit when reached >= new.position;
        end loop;
        new.position := reached;
    end if;
    return new;
end
$$;

do $$
begin
    if not exists (
        select from pg_trigger where tgrelid = 'pillarbox.outbox'::regclass and tgname = 'outbox_replicated'
    ) then
        create trigger outbox_replicated before insert on pillarbox.outbox
        for each row execute function pillarbox.outbox_replicated();
    end if;
end
$$;
alter table pillarbox.outbox enable replica trigger outbox_replicated;

-- When the publisher's retention removes rows, the subscription names them by position. Here another event may have
-- that position, and it may not have been shipped. So a subscription changes and removes nothing. The retention here
-- does that.
create or replace function pillarbox.outbox_kept() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    return null;
end
$$;

do $$
begin
    if not exists (
        select from pg_trigger where tgrelid = 'pillarbox.outbox'::regclass and tgname = 'outbox_kept'
    ) then
        create trigger outbox_kept before update or delete on pillarbox.outbox
        for each row execute function pillarbox.outbox_kept();
    end if;
end
$$;
alter table pillarbox.outbox enable replica trigger outbox_kept;

-- One row for each relay name: its cursor, and the lease that says which process may move it.
create table if not exists pillarbox.relay (
    name       text        primary key,
    cursor     jsonb       not null,
    holder     text        null,
    epoch      bigint      not null default 0,
    expires_at timestamptz null,
    heartbeat  timestamptz null
);

comment on column pillarbox.relay.cursor is
    'A Postgres snapshot: what it can see has been shipped. The other members are explained in the relay''s cursor.rs.';
comment on column pillarbox.relay.epoch is
    'Grows with each change of holder; a write that names an older epoch changes nothing.';

-- The processes that serve a relay name, leading or standing by, and how many outboxes each of them leads. With this
-- they share several outboxes evenly. A leader that does not reach the broker hands over to one that does. `notice` says
-- what is wrong with a process that ships nevertheless.
create table if not exists pillarbox.relay_member (
    relay   text        not null,
    holder  text        not null,
    leads   integer     not null,
    reaches_broker boolean not null default true,
    seen_at timestamptz not null,
    notice  text        null,
    primary key (relay, holder)
);

-- Checkpoints: places to which a relay can go back when the broker has lost events that it had acknowledged. Each has
-- the cursor, and the state of each stream when everything before the cursor was in it. They are kept for the
-- retention. Rows of the outbox are removed when the newest checkpoint past the retention covers them.
create table if not exists pillarbox.relay_checkpoint (
    relay    text        not null,
    taken_at timestamptz not null default clock_timestamp(),
    cursor   jsonb       not null,
    streams  jsonb       not null,
    primary key (relay, taken_at)
);

-- Dead letters: events that the broker can never store (the payload is over its limit, or it refuses the subject). They
-- are set aside in the same transaction in which the cursor passes them.
--
--   dead       given up, until somebody retries or discards it
--   parked     waits for the relay to ship it: it was retried, or, with order = "strict", it waits behind a dead
--              letter of its key
--   retried    shipped after all
--   discarded  not to be shipped
--
-- A letter has a number of its own, because positions come again when a table is emptied and its sequence restarted,
-- and two relays of one outbox may each have a letter for the same event. `whole` is false if not all of the event
-- could be kept: its row was damaged, or one of its columns was too large to be copied. Such a letter cannot be
-- retried, and the row stays in the outbox until the letter is resolved.
create table if not exists pillarbox.outbox_dead_letter (
    position    bigint      not null,
    relay       text        not null,
    event_id    uuid        not null,
    event_type  text        not null,
    topic       text        not null,
    key         text        null,
    headers     jsonb       not null,
    payload     bytea       not null,
    created_at  timestamptz not null,
    reason      text        not null,
    error       text        not null,
    attempts    integer     not null,
    state       text        not null default 'dead' check (state in ('dead', 'parked', 'retried', 'discarded')),
    dead_at     timestamptz not null default clock_timestamp(),
    resolved_at timestamptz null,
    letter      bigint      generated always as identity primary key,
    whole       boolean     not null default true
);

alter table pillarbox.outbox_dead_letter alter column payload set storage external;
alter table pillarbox.outbox_dead_letter alter column headers set storage external;

create index if not exists outbox_dead_letter_open
    on pillarbox.outbox_dead_letter (relay, key, position)
    where state in ('dead', 'parked');
-- For the question whether there is already a letter for an event.
create index if not exists outbox_dead_letter_place
    on pillarbox.outbox_dead_letter (position, event_id);
