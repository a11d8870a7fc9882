-- The business tables, the same for every contestant. Each key has an account, and a transaction locks its row before
-- it writes its event. So `n` counts the commits of a key, and an event's n is its place in the key's order.
create table account (
    key int primary key,
    n   bigint not null default 0
);

-- The payload of an event: 256 bytes of JSON, the same as in `event.rs`.
create function payload(key int, n bigint, due bigint) returns text
language sql immutable as $$
    select rpad(format('{"key":%s,"n":%s,"due":%s,"pad":"', key, n, due), 254, 'x') || '"}'
$$;

-- The events of a backlog for `topic`, from number `first` up to but not including `last`, over the first `keys`
-- accounts in turn. Each n continues from that of its account.
create function backlog(first bigint, last bigint, keys int, topic text)
returns table (key int, n bigint, topic text, payload text)
language sql stable as $$
    select account.key, place.n, topic, payload(account.key, place.n, 0)
    from generate_series(first, last - 1) as number
    join account on account.key = number % keys
    cross join lateral (select account.n + number / keys + 1) as place (n)
    order by number
$$;
