-- Sagas: business processes that go on over many events. One row is one instance: how far it is, and what it knows.
-- The row is locked while one of its events is handled, and written in that event's transaction.
--
--   running       the process goes on
--   compensating  it has failed, the opposites of its steps are on their way, and it waits for their answers
--   completed     it has ended well
--   failed        it has ended, and what it had done is undone
--
-- `id` tells the instances of a saga apart: by default it is the key of their events. `state` is the service's own.
-- `step` is the name that the service gives to the place where the instance is. `version` is how often the row was
-- written, and the number of the newest entry of its history. `timers` are the events that it has scheduled, by name.
-- `compensations` are the events that are published if it fails, the newest last. `failure` is why it failed.
create table if not exists pillarbox.saga (
    saga          text        not null check (saga <> ''),
    id            text        not null check (id <> ''),
    state         jsonb       not null,
    step          text        not null,
    status        text        not null check (status in ('running', 'compensating', 'completed', 'failed')),
    version       bigint      not null,
    started_at    timestamptz not null default clock_timestamp(),
    updated_at    timestamptz not null default clock_timestamp(),
    ended_at      timestamptz null,
    deadline_at   timestamptz null,
    timers        jsonb       not null default '[]',
    compensations jsonb       not null default '[]',
    failure       text        null,
    primary key (saga, id),
    check ((ended_at is null) = (status in ('running', 'compensating')))
);

-- Those that are open are few beside those that have ended.
create index if not exists saga_open on pillarbox.saga (saga, step, started_at) where ended_at is null;
create index if not exists saga_failed on pillarbox.saga (saga) where status = 'failed';
-- Old ones are removed in the order of their end.
create index if not exists saga_ended on pillarbox.saga (saga, ended_at) where ended_at is not null;

-- What happened to each instance, and what caused it: one row for each event that it was given, and for each action of
-- an operator. `published` are the ids and types of the events that it published then, `timers_set` and
-- `timers_cancelled` the names and event ids of timers. Only the first entry and the newest ones are kept.
create table if not exists pillarbox.saga_history (
    saga             text        not null,
    id               text        not null,
    seq              bigint      not null,
    at               timestamptz not null default clock_timestamp(),
    event_id         text        not null,
    event_type       text        not null,
    step_before      text        not null,
    step_after       text        not null,
    status           text        not null,
    published        jsonb       not null default '[]',
    timers_set       jsonb       not null default '[]',
    timers_cancelled jsonb       not null default '[]',
    note             text        null,
    primary key (saga, id, seq),
    -- A saga that gets another name takes its history along.
    foreign key (saga, id) references pillarbox.saga (saga, id) on update cascade on delete cascade
);
