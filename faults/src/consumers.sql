-- The effects of all consumers, each written in the transaction of its handler. The table is in the database of the
-- inbox.
--
-- `seq` is the order in which they were written. `previous` is the highest number of its key, for this consumer,
-- that the handler saw. If it ran at the same time as another handler of the key, the other one's number is missing.
-- Nothing here prevents an event from taking effect twice, because that is the task of the inbox.
create table effect (
    seq      bigint      generated always as identity primary key,
    at       timestamptz not null default clock_timestamp(),
    consumer text        not null,
    process  text        not null,
    event_id text        not null,
    key      text        null,
    number   bigint      not null,
    previous bigint      null
);
create index on effect (consumer, key, number);
