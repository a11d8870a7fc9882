-- Run at every start; use a migration tool of your choice once the tables change.
create table if not exists orders (
    id    bigint generated always as identity primary key,
    cents bigint not null check (cents >= 0)
);

create table if not exists confirmations (
    order_id bigint not null primary key references orders (id),
    sent_at  timestamptz not null default clock_timestamp()
);
