-- The inbox of a service: which events each of its consumers has handled, which it is still trying, and
-- which it has given up.
--
-- Plain SQL: apply it with `pillarbox migrate inbox`, with `pillarbox_inbox::migrate`, with psql, or with
-- any migration tool. To use another schema, replace the word `pillarbox` throughout, as `--schema` does.

-- `create schema if not exists` would need the right to create schemas even if the schema exists.
do $$
begin
    if to_regnamespace('pillarbox') is null then
        create schema pillarbox;
    end if;
end
$$;

-- One row for each event that a consumer has handled, written in the handler's transaction: the row and the
-- handler's effects commit together or not at all. Inserting the row also takes a lock: a second delivery of the
-- same event waits for the first one's transaction and then finds the row.
--
-- `event_id` is the event's identity. For an event that a relay shipped, or that names no source, it is the event's id.
-- For others it is a digest of source and id, because two sources may use the same id. It is never longer than 36
-- bytes, unless somebody else wrote the row.
create table if not exists pillarbox.inbox (
    consumer     text        not null check (consumer <> ''),
    event_id     text        not null check (event_id <> ''),
    processed_at timestamptz not null default clock_timestamp(),
    primary key (consumer, event_id)
);
-- There is no index by age. Old rows are removed by walking the table piece by piece, which costs the insert nothing.

-- What each consumer has forgotten: `handled_at` is when the newest event was handled whose row was removed from the
-- inbox because of its age. It is written when rows are removed. Messages that the stream stored until then may have
-- been handled and forgotten, so a durable consumer that is created again must not read them. No row means that nothing
-- was forgotten.
create table if not exists pillarbox.inbox_forgotten (
    consumer   text        not null primary key,
    handled_at timestamptz not null
);

-- Events that failed and will be tried again. A row is written after the handler's rollback, and removed when the event
-- is handled or becomes a dead letter. `outages` is how often a provider that the handler needs was away, which does
-- not count as an attempt, and `outage_since` is when that began. `uncounted` is how many other failures were not
-- counted as attempts: conflicts, and connections that the event may have broken itself. `started` says whether an
-- event that was delivered before is suspected of killing its process: 0 no, 1 in work, 2 and 4 in work alone, 3 and 5
-- held back to see whether the process lives without it. `started_at` is when that began. `event_id` is the identity,
-- as in the inbox. `id` and `source` are those of the event, if the identity is another text.
create table if not exists pillarbox.inbox_failure (
    consumer        text        not null,
    event_id        text        not null,
    id              text        null,
    source          text        null,
    attempts        integer     not null check (attempts >= 0),
    outages         integer     not null default 0 check (outages >= 0),
    outage_since    timestamptz null,
    uncounted       integer     not null default 0 check (uncounted >= 0),
    started         integer     not null default 0 check (started between 0 and 5),
    started_at      timestamptz null,
    last_error      text        not null,
    first_failed_at timestamptz not null default clock_timestamp(),
    last_failed_at  timestamptz not null default clock_timestamp(),
    primary key (consumer, event_id)
);

-- For each consumer, when one of its processes last died for a reason of its own, which means while the suspected event
-- was not in work. For a day, more evidence is then needed to decide that an event kills its process.
create table if not exists pillarbox.inbox_own_death (
    consumer text        not null primary key,
    died_at  timestamptz not null
);

-- Dead letters: events that were given up. The whole event is kept, so that somebody can look at it and retry it.
--
--   dead       given up, until somebody retries or discards it
--   parked     waits for the consumer to handle it: it was retried; or, with order = "strict", it waits behind a
--              dead letter of its key; or its key fails and has many events behind it (reason `waiting`)
--   retried    handled after all
--   discarded  not to be handled
--
-- `position` is the order in which they came. `due_at` is the time from which a process may take a parked letter. The
-- process that takes it moves `due_at` forward, and so reserves the letter for itself until then.
--
-- `event_id` is the id that the event's producer gave it. `identity` is the inbox's name for it, if that is another
-- text. A message that could not be read has no type. It is identified by its place: `stream_sequence` and `stored_at`
-- in the stream (a stream that is created again counts from one again). Its `event_id` is a name for it,
-- `STREAM:sequence`. `stream` is where the event came from. After a retry, only a consumer that reads this stream
-- handles it.
--
-- An operator may edit headers and payload of a dead letter. `edited_at` says when that was last done. The content with
-- which the event was published stays in `original_headers` and `original_payload`.
create table if not exists pillarbox.inbox_dead_letter (
    position        bigint      not null generated always as identity primary key,
    consumer        text        not null,
    event_id        text        not null,
    identity        text        null,
    stream          text        null,
    stream_sequence bigint      null,
    stored_at       timestamptz null,
    event_type      text        null,
    topic           text        not null,
    key             text        null,
    headers         jsonb       not null,
    payload         bytea       not null,
    reason          text        not null,
    error           text        not null,
    attempts        integer     not null,
    first_failed_at timestamptz not null,
    dead_at         timestamptz not null default clock_timestamp(),
    state           text        not null default 'dead' check (state in ('dead', 'parked', 'retried', 'discarded')),
    due_at          timestamptz null,
    resolved_at     timestamptz null,
    edited_at        timestamptz null,
    original_headers jsonb       null,
    original_payload bytea       null
);

-- There is at most one letter for an event, and at most one for a place.
create unique index if not exists inbox_dead_letter_event
    on pillarbox.inbox_dead_letter (consumer, coalesce(identity, event_id))
    where event_type is not null;
create unique index if not exists inbox_dead_letter_place
    on pillarbox.inbox_dead_letter (consumer, stream, stream_sequence, stored_at)
    where event_type is null;

create index if not exists inbox_dead_letter_open
    on pillarbox.inbox_dead_letter (consumer, key, position)
    where state in ('dead', 'parked');
-- For what is parked, from key to key.
create index if not exists inbox_dead_letter_parked
    on pillarbox.inbox_dead_letter (consumer, coalesce(stream, ''), key, position)
    where state = 'parked';

-- HTTP requests that have been answered, by their Idempotency-Key. The row is written in the same transaction as the
-- handler's writes, like the inbox row of an event, but at its end, when there is an answer. `scope` says whose key it
-- is. `fingerprint` is the SHA-256 of method, path, query and body, and tells a repeat from another request with the
-- same key. The answer is kept as it was: the n-th name belongs to the n-th value.
create table if not exists pillarbox.inbox_request (
    scope         text        not null,
    key           text        not null check (key <> ''),
    fingerprint   bytea       not null,
    status        integer     not null check (status between 100 and 999),
    header_names  text[]      not null,
    header_values bytea[]     not null,
    body          bytea       not null,
    answered_at   timestamptz not null default clock_timestamp(),
    primary key (scope, key)
);

-- Old rows are removed in batches, in the order of their age.
create index if not exists inbox_request_answered_at on pillarbox.inbox_request (answered_at);

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
