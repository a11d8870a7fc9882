-- The outbox table that most hand-written pollers have.
create table outbox (
    id           bigint      generated always as identity primary key,
    event_id     uuid        not null default gen_random_uuid(),
    topic        text        not null,
    key          text        not null,
    payload      bytea       not null,
    created_at   timestamptz not null default now(),
    published_at timestamptz null
);
create index outbox_pending on outbox (id) where published_at is null;
