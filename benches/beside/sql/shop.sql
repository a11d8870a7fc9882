-- The business that every contestant serves: an account for each key, whose row a transaction locks before it
-- writes its event. So `n` counts the commits of a key, and an event's n is its place in the key's order.
create table account (
    key int primary key,
    n   bigint not null default 0
);

-- An event's payload: 256 bytes of JSON, as `event.rs` makes it too.
create function payload(key int, n bigint, due bigint) returns text
language sql immutable as $$
    select rpad(format('{"key":%s,"n":%s,"due":%s,"pad":"', key, n, due), 254, 'x') || '"}'
$$;

-- The events of a backlog from number `first` up to, not including, number `last`, over the first `keys` accounts in
-- turn, for `topic`. Their n go on from the accounts'.
create function backlog(first bigint, last bigint, keys int, topic text)
returns table (key int, n bigint, topic text, payload text)
language sql stable as $$
    select account.key, place.n, topic, payload(account.key, place.n, 0)
    from generate_series(first, last - 1) as number
    join account on account.key = number % keys
    cross join lateral (select account.n + number / keys + 1) as place (n)
    order by number
$$;
