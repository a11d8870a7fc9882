-- The effects of all consumers, each written in the transaction of its handler. It stands in the database of the
-- inbox.
--
-- `seq` is the order in which they were written. `previous` is the highest number of its key, for this consumer,
-- that the handler saw: if it ran while another handler of the key did, the other one's is missing. Nothing here
-- keeps an event from taking effect twice: that is left to the inbox.
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
