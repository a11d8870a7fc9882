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
-- `synchronous` says whether the row's commit is on disk before anybody can see it. Postgres ensures that unless the
-- writer's synchronous_commit is off. The relay ships other rows only after the log has been flushed, or a crash could
-- take back an event that has been shipped. What counts is the setting at the insert: if a transaction turns it off
-- after that, the row does not say so.
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
    synchronous boolean    not null default current_setting('synchronous_commit') <> 'off',
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
comment on column pillarbox.outbox.synchronous is
    'Whether the writer''s synchronous_commit was not off at the insert. The relay ships other rows a little later, when the log has been flushed.';
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
-- `synchronous` comes from the publisher, too. The trigger sets it to what holds for the transaction here, which by
-- default does not wait for the disk.
--
-- The trigger fires only in sessions that replicate, so it costs an ordinary writer nothing.
create or replace function pillarbox.outbox_replicated() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    above bigint := nullif(current_setting('pillarbox.replicated_above', true), '')::bigint;
    -- A copy of the table that was swapped in has a sequence of its own.
    sequence regclass := coalesce(pg_get_serial_sequence('pillarbox.outbox', 'position'), 'pillarbox.outbox_position_seq');
    reached bigint;
begin
    new.txid := pg_current_xact_id();
    new.synchronous := current_setting('synchronous_commit') <> 'off';
    -- If the sequence was not called since it was created or restarted, its next value is last_value itself.
    execute format('select case when is_called then last_value else last_value - 1 end from %s', sequence) into reached;
    if above is null then
        above := reached;
        perform set_config('pillarbox.replicated_above', above::text, true);
    end if;
    if
        new.position <= above
        or new.position > 4611686018427387904
        or exists (select from pillarbox.outbox where position = new.position)
    then
        new.position := nextval(sequence);
    elsif new.position > reached then
        if new.position - reached > 1000 then
            perform setval(sequence, new.position, false);
        end if;
        loop
            reached := nextval(sequence);
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
    heartbeat  timestamptz null,
    held       jsonb       not null default '[]'
);

comment on column pillarbox.relay.cursor is
    'A Postgres snapshot: what it can see has been shipped. The other members are explained in the relay''s cursor.rs.';
comment on column pillarbox.relay.held is
    'Events that can never be shipped and whose dead letters the table outbox_dead_letter does not take. The cursor has passed them.';
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
--
-- An operator may edit headers and payload of a dead letter. `edited_at` says when that was last done. The content with
-- which the event was published stays in `original_headers` and `original_payload`.
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
    whole       boolean     not null default true,
    edited_at        timestamptz null,
    original_headers jsonb       null,
    original_payload bytea       null
);

alter table pillarbox.outbox_dead_letter alter column payload set storage external;
alter table pillarbox.outbox_dead_letter alter column original_payload set storage external;
alter table pillarbox.outbox_dead_letter alter column headers set storage external;

create index if not exists outbox_dead_letter_open
    on pillarbox.outbox_dead_letter (relay, key, position)
    where state in ('dead', 'parked');
-- For the next parked events, in their order.
create index if not exists outbox_dead_letter_parked
    on pillarbox.outbox_dead_letter (relay, position, letter)
    where state = 'parked';
-- For the question whether there is already a letter for an event.
create index if not exists outbox_dead_letter_place
    on pillarbox.outbox_dead_letter (position, event_id);

-- What operators have done: one row for each change, written in the transaction that made it. A command that touches many
-- rows in several transactions writes a row for each, and they have the same `run`. `role` is the database's own answer to
-- who was connected, and nobody may set it. `who` is what the operator's program says: the account of its machine, or a
-- name that was given. `letters` are the dead letters that were touched. Rows are only added; the relay and the consumers
-- remove those that are older than a year.
--
-- The outbox and the inbox use the same table, so both create it.
create table if not exists pillarbox.operator_action (
    id      bigint      not null generated always as identity primary key,
    at      timestamptz not null default clock_timestamp(),
    role    text        not null default session_user,
    who     text        not null,
    what    text        not null check (what <> ''),
    target  text        not null,
    count   bigint      not null,
    note    text        null,
    run     text        not null,
    letters bigint[]    null
);

create index if not exists operator_action_at on pillarbox.operator_action (at);

-- Scheduled events: one row for each event that is to leave later, written in the same transaction as the business
-- data. The leading relay moves what is due into the outbox; from there on it is an event like any other. A service in
-- any language may insert (due_at, event_type, topic, key, headers, payload), and cancel by deleting the row.
--
-- The checks are the outbox's, so that every row can be moved there. A due time must lie in the years 1 to 9999, which
-- every language can read back; `infinity` would never come.
--
-- `error` is why a row could not be moved when it was tried alone, at `tried_at`. Such a row waits beside the others
-- and is tried again after a minute, so it holds nothing but itself. Only the relay sets these two columns.
create table if not exists pillarbox.outbox_scheduled (
    event_id   uuid        not null default gen_random_uuid() primary key,
    due_at     timestamptz not null,
    event_type text        not null check (event_type <> ''),
    topic      text        not null check (topic <> ''),
    key        text        null,
    headers    jsonb       not null default '{}' check (jsonb_typeof(headers) = 'object'),
    payload    bytea       not null,
    created_at timestamptz not null default clock_timestamp(),
    error      text        null,
    tried_at   timestamptz null,
    constraint outbox_scheduled_due_at_calendar
        check (due_at >= '0001-01-01 00:00:00+00' and due_at < '10000-01-01 00:00:00+00'),
    constraint outbox_scheduled_tried check ((error is null) = (tried_at is null)),
    constraint outbox_scheduled_event_type_size check (octet_length(event_type) <= 65536),
    constraint outbox_scheduled_topic_size check (octet_length(topic) <= 65536),
    constraint outbox_scheduled_key_size check (octet_length(key) <= 65536),
    constraint outbox_scheduled_headers_size check (octet_length(headers::text) <= 1048576),
    constraint outbox_scheduled_payload_size check (octet_length(payload) <= 67108864)
);

comment on table pillarbox.outbox_scheduled is
    'Events that are to leave later. Insert (due_at, event_type, topic, key, headers, payload); delete a row to cancel it.';
comment on column pillarbox.outbox_scheduled.due_at is
    'Not before this time, by this database''s clock, the relay moves the row into the outbox.';

-- As in the outbox, so that a row can be moved without being unpacked.
alter table pillarbox.outbox_scheduled alter column payload set storage external;
alter table pillarbox.outbox_scheduled alter column headers set storage external;

-- What is due next. Rows that are due at the same time leave in the order in which they were written.
create index if not exists outbox_scheduled_due_at
    on pillarbox.outbox_scheduled (due_at, created_at)
    where error is null;
-- What could not be moved, and is to be tried again.
create index if not exists outbox_scheduled_tried_at
    on pillarbox.outbox_scheduled (tried_at)
    where error is not null;

-- Rows come and go, so vacuum follows soon: a scan for what is due steps over what has left until then.
alter table pillarbox.outbox_scheduled set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- Moves events that are due into the outbox, at most `most` of them and about 8 MiB, in the order of `due_at`, and says
-- when the next one is due. This is the only way in which the relay's role writes events, and it can write only what a
-- service has scheduled, and only when it is due: the function runs with its owner's rights.
--
--   by_relay, under_epoch   the caller's lease. Nothing moves unless it is in force: `leads` is false then
--   most                    0 moves nothing and counts instead: `pending`, `held`, `overdue`
--   alone                   true moves each row by itself, and rows again that could not be moved a minute ago
--   behind                  rows that were due before that are not looked for; null looks for all. The answer is what the
--                           next call may say: nothing was left there. A caller says null now and then, because a
--                           transaction that takes long, or plain SQL, brings rows that were due long ago
--
--   released      rows that were moved
--   failed        rows that could not be moved, each tried alone
--   next_due_in   seconds until the next row is due, below 0 if it is due already; null if none is left
--   retries       whether a call with `alone` has something to do
--   pending, held, overdue   with most = 0: all rows, those that could not be moved, and the age of the oldest row that
--                 is due, in seconds
--
-- Only this database's clock counts, and it is read again by each call, so it may jump.
--
-- Each row is deleted and inserted in one transaction, so it leaves exactly once, whoever calls, and whenever the caller
-- dies. Who cancels a row locks it: a row that is being cancelled is skipped, and a cancel that comes later waits for
-- the release and then finds no row. So a cancel that removed a row is never delivered, and a row that was committed and
-- that a cancel did not find has left, or was cancelled before.
--
-- `behind` is there for rows that have left and that no vacuum can remove yet, because some transaction is still open. Each
-- scan would step over all of them again: 200,000 take 40 ms. It stays two seconds back, for transactions in progress.
--
-- The rows of all relays are locked while events move, for two reasons: nobody takes the lease over in the meantime, and
-- relays with different names take turns, so that positions are in the order of `due_at`. Writers never wait for that.
--
-- A row may be unmovable although the checks agree: it is damaged on disk, or somebody has put a constraint, a trigger or
-- a rule on the outbox. One that leaves the row out without an error counts, too: the rows that arrived are counted, or
-- the event would be gone from both tables. The whole call fails then, and the caller calls with `alone`. There every row has a savepoint of its
-- own. Otherwise there is none, because the relay's cursor would have to guess more (relay/src/source/visibility.rs). What is the fault of
-- the database as a whole, such as a full disk, a lock or a missing table, is no row's fault, and still fails the call.
create or replace function pillarbox.release_scheduled(
    by_relay text,
    under_epoch bigint,
    most integer,
    alone boolean,
    inout behind timestamptz,
    out leads boolean,
    out released bigint,
    out failed bigint,
    out next_due_in double precision,
    out retries boolean,
    out pending bigint,
    out held bigint,
    out overdue double precision
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
-- A plan from when the table was small would read all of it when it is large.
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
    at_most constant bigint := 8388608;
    again_after constant interval := interval '1 minute';
    settling constant interval := interval '2 seconds';
    moment timestamptz := clock_timestamp();
    since constant timestamptz := coalesce(behind, '-infinity');
    left_out constant text := 'the outbox left events out without an error: look for a trigger or rule on it, or on '
        || 'the scheduled events, that suppresses rows, and drop it';
    next_due timestamptz;
    chosen uuid[];
    one uuid;
    moved integer;
begin
    released := 0;
    failed := 0;
    if most = 0 then
        select count(*) into held from pillarbox.outbox_scheduled where error is not null;
        select count(*) + held into pending from pillarbox.outbox_scheduled where error is null;
        select extract(epoch from moment - min(oldest.due_at))
        into overdue
        from (
            (select due_at from pillarbox.outbox_scheduled where error is null order by due_at, created_at limit 1)
            union all
            select due_at from pillarbox.outbox_scheduled where error is not null
        ) as oldest
        where oldest.due_at <= moment;
    end if;
    leads := exists (
        select from pillarbox.relay where name = by_relay and epoch = under_epoch and holder is not null
    );
    select min(due_at) into next_due from pillarbox.outbox_scheduled where error is null and due_at >= since;
    retries := exists (
        select from pillarbox.outbox_scheduled where error is not null and tried_at < moment - again_after
    );
    if leads and most > 0 and (next_due <= moment or (alone and retries)) then
        perform from pillarbox.relay order by name for no key update;
        leads := exists (
            select from pillarbox.relay where name = by_relay and epoch = under_epoch and holder is not null
        );
        moment := clock_timestamp();
        if leads and not alone then
            with due as materialized (
                select event_id, due_at, created_at, octet_length(payload)::bigint as bytes
                from pillarbox.outbox_scheduled
                where error is null and due_at >= since and due_at <= moment
                order by due_at, created_at
                limit most
                for update skip locked
            ),
            weighed as (
                select event_id, sum(bytes) over (order by due_at, created_at, event_id) - bytes as before
                from due
            )
            select array(select event_id from weighed where before < at_most) into chosen;
            with moving as (
                delete from pillarbox.outbox_scheduled
                where event_id = any (chosen)
                returning event_id, due_at, event_type, topic, key, headers, payload, created_at
            )
            insert into pillarbox.outbox (event_id, event_type, topic, key, headers, payload)
            select event_id, event_type, topic, key, headers, payload
            from moving
            order by due_at, created_at, event_id;
            get diagnostics released = row_count;
            if released <> cardinality(chosen) then
                raise exception using message = left_out;
            end if;
        elsif leads then
            for one in
                select event_id
                from unnest(
                    array(
                        select event_id
                        from pillarbox.outbox_scheduled
                        where error is null and due_at >= since and due_at <= moment
                        order by due_at, created_at
                        limit most
                        for update skip locked
                    )
                    || array(
                        select event_id
                        from pillarbox.outbox_scheduled
                        where error is not null and tried_at < moment - again_after
                        order by tried_at
                        limit most
                        for update skip locked
                    )
                ) as event_id
            loop
                begin
                    with moving as (
                        delete from pillarbox.outbox_scheduled
                        where event_id = one
                        returning event_id, event_type, topic, key, headers, payload
                    )
                    insert into pillarbox.outbox (event_id, event_type, topic, key, headers, payload)
                    select event_id, event_type, topic, key, headers, payload
                    from moving;
                    get diagnostics moved = row_count;
                    if moved <> 1 then
                        raise exception using message = left_out;
                    end if;
                    released := released + moved;
                exception
                    when others then
                        if left(sqlstate, 2) not in ('22', '23', 'P0', 'XX') then
                            raise;
                        end if;
                        update pillarbox.outbox_scheduled
                        set error = left(sqlstate || ': ' || sqlerrm, 500), tried_at = clock_timestamp()
                        where event_id = one;
                        failed := failed + 1;
                end;
            end loop;
        end if;
        select min(due_at) into next_due from pillarbox.outbox_scheduled where error is null and due_at >= since;
    end if;
    behind := least(next_due, moment - settling);
    next_due_in := extract(epoch from next_due - clock_timestamp());
end
$$;

-- Everybody may run a new function. Nobody may run this one who was not granted it (grants/outbox.sql).
revoke all on function pillarbox.release_scheduled(text, bigint, integer, boolean, timestamptz) from public;
