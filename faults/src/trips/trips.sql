-- What the services of trips have done, each row written in its handler's transaction, in the order of `seq`. `booked`,
-- `refused` and `declined` are the answers to a booking; `declined` means that it came after its cancellation. Nothing
-- here prevents a second booking or a second cancellation, because that is the task of the inbox.
create table trip_effect (
    seq      bigint      generated always as identity primary key,
    at       timestamptz not null default clock_timestamp(),
    service  text        not null,
    trip     text        not null,
    what     text        not null check (what in ('booked', 'refused', 'declined', 'cancelled')),
    event_id text        not null
);
create index on trip_effect (trip, service);
