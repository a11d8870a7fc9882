-- The outbox of a service, and the relay's place in it.
--
-- Plain SQL: apply it with `pillarbox migrate outbox`, with `pillarbox_outbox::migrate`, with psql, or
-- with any migration tool. Another schema is had by replacing the word `pillarbox` throughout, which is
-- what `--schema` does.

-- `create schema if not exists` asks for the right to create schemas in the database also where the schema is
-- there.
do $$
begin
    if to_regnamespace('pillarbox') is null then
        create schema pillarbox;
    end if;
end
$$;

-- One row for each event, written in the transaction that it tells of.
--
-- `txid` stands before `position` on purpose: defaults are evaluated from left to right, so a row's
-- position is always drawn after its transaction has its id. The relay's cursor rests on that, and on
-- positions being handed out in order over all sessions, which is why the sequence has cache 1.
--
-- The relay never updates these rows. Any language may insert (event_type, topic, key, headers, payload).
--
-- The checks on sizes refuse what no broker can ever store: nats-server takes messages up to 64 MiB and JetStream
-- headers up to 64 KiB. They are generous, so that a broker's own limits decide about the rest. A position is above
-- zero, where every cursor begins: a row below it, which `overriding system value` can bring, would never be read.
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

-- Payloads are bytes that seldom compress well; leave them as they are up to the toast threshold, and
-- keep the writer from spending time on compression.
alter table pillarbox.outbox alter column payload set storage external;
-- Headers are not compressed either, so that the relay sees their size without unpacking them.
alter table pillarbox.outbox alter column headers set storage external;

-- Rows that a subscription brings carry the publisher's transaction ids, and positions that may lie behind those
-- given out here. So they get this transaction's id, and the next position where theirs is behind: where the sequence
-- was when the transaction brought its first row, so that the order of a first copy, which comes as the rows lie on
-- disk, stays that of their positions. A taken position is no reason to stop the subscription.
--
-- A subscription does not bring the sequence. Where a row keeps its position, the trigger brings the sequence up to it:
-- otherwise the first writers here would draw positions that are taken, and be refused. It draws positions until it has
-- that one, which is safe beside writers that draw from the same sequence. Only a large gap is skipped with setval. A
-- position that no sequence reaches is not kept: it would leave no positions for the writers.
--
-- The trigger fires in sessions that replicate and in no others: it costs an ordinary writer nothing.
create or replace function pillarbox.outbox_replicated() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    above bigint := nullif(current_setting('pillarbox.replicated_above', true), '')::bigint;
    reached bigint;
begin
    new.txid := pg_current_xact_id();
    -- A sequence that has not been called since it was made or restarted stands behind the position before.
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

-- What the publisher removes, when its own retention is over, it names by position. Here another event may have that
-- position, one that has not been shipped. So a subscription changes and removes nothing: retention does that here.
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

-- The processes that serve a relay name, leading or standing by, and how many outboxes each of them leads: by
-- this they share several outboxes evenly. `notice` says what is wrong with a process that ships nevertheless.
create table if not exists pillarbox.relay_member (
    relay   text        not null,
    holder  text        not null,
    leads   integer     not null,
    seen_at timestamptz not null,
    notice  text        null,
    primary key (relay, holder)
);

-- Places that a relay can go back to when the broker has lost what it had acknowledged: the cursor, and how
-- each stream stood when everything before the cursor was in it. Kept for the retention; rows of the outbox go
-- when the newest checkpoint past the retention covers them.
create table if not exists pillarbox.relay_checkpoint (
    relay    text        not null,
    taken_at timestamptz not null default clock_timestamp(),
    cursor   jsonb       not null,
    streams  jsonb       not null,
    primary key (relay, taken_at)
);

-- Events that can never be stored by the broker (payload over its limit, a subject it refuses), moved
-- aside in the same transaction in which the cursor passes them.
--
--   dead       given up, until somebody retries or discards it
--   parked     waits for the relay to ship it: it was retried, or, with order = "strict", stands behind a dead
--              event of its key
--   retried    shipped after all
--   discarded  not to be shipped
--
-- A letter is a row of its own, under a number of its own. Positions come again when a table is emptied and its
-- sequence restarted, and two relays of one outbox each have a letter for the same event. `whole` is false where not
-- all of the event could be kept: its row was damaged, or a column of it was too large to be copied. Such a letter
-- cannot be retried; the row stays in the outbox until the letter is resolved.
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
-- Is there a letter for this event already?
create index if not exists outbox_dead_letter_place
    on pillarbox.outbox_dead_letter (position, event_id);
