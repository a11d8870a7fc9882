-- Takes parked events that may be handled now: $1 consumer, $2 whether the order is strict, $3 for how many
-- milliseconds, $4 of at most this many keys, and this many events without a key, $5 of which stream, or '' for events
-- that came from none, $6 and $7 after which key, and after which position without a key.
--
-- It takes the first events of each key, as many as can run one after another in a short time: 200 events or 4 MiB, and
-- at least one. With a strict order, it takes none after a dead one, and never one that was parked behind an event that
-- is dead. No other process takes them before `due_at`; if a process dies, its events stay until then. Whoever takes
-- the first event of a key has locked it, so two processes do not split the events of a key between them.
--
-- The cost does not depend on how many events are parked: the query jumps from key to key in the index, over at most
-- 256 keys, and the next one continues from there. Reading all parked rows takes a fifth of a second if 100,000 wait.
--
-- `again` says whether an event may have been begun before. An event behind another one has not, unless it was taken.
--
-- `waiting_since` is the time since which these keys wait behind a failing event, of the one that waits longest.
--
-- The answer has a row for each event, or one row without an event. Each row says after which key and position to look
-- next: '' and 0 once the round is complete.
with recursive keyed as (
    (
        select key, position, due_at, reason, first_failed_at, 1 as number
        from pillarbox.inbox_dead_letter
        where
            consumer operator(pg_catalog.=) $1
            and coalesce(stream, '') operator(pg_catalog.=) $5
            and state operator(pg_catalog.=) 'parked'
            and key operator(pg_catalog.>) $6
        order by key, position
        limit 1
    )
    union all
    select
        following.key,
        following.position,
        following.due_at,
        following.reason,
        following.first_failed_at,
        keyed.number operator(pg_catalog.+) 1
    from keyed
    cross join lateral (
        select key, position, due_at, reason, first_failed_at
        from pillarbox.inbox_dead_letter
        where
            consumer operator(pg_catalog.=) $1
            and coalesce(stream, '') operator(pg_catalog.=) $5
            and state operator(pg_catalog.=) 'parked'
            and key operator(pg_catalog.>) keyed.key
        order by key, position
        limit 1
    ) as following
    where keyed.number operator(pg_catalog.<) 256
),
keyless as (
    select position, due_at
    from pillarbox.inbox_dead_letter
    where
        consumer operator(pg_catalog.=) $1
        and coalesce(stream, '') operator(pg_catalog.=) $5
        and state operator(pg_catalog.=) 'parked'
        and key is null
        and position operator(pg_catalog.>) $7
    order by position
    limit 256
),
free as (
    select *
    from keyed
    where
        not exists (
            select
            from pillarbox.inbox_dead_letter as earlier
            where
                ($2 or keyed.reason operator(pg_catalog.=) 'parked')
                and earlier.consumer operator(pg_catalog.=) $1
                and earlier.key operator(pg_catalog.=) keyed.key
                and coalesce(earlier.stream, '') operator(pg_catalog.=) $5
                and earlier.position operator(pg_catalog.<) keyed.position
                and earlier.state operator(pg_catalog.=) 'dead'
        )
),
due_keyed as (
    select key, position
    from free
    where due_at is null or due_at operator(pg_catalog.<=) pg_catalog.clock_timestamp()
    order by number
    limit $4
),
due_keyless as (
    select position
    from keyless
    where due_at is null or due_at operator(pg_catalog.<=) pg_catalog.clock_timestamp()
    order by position
    limit $4
),
head as (
    select letter.key, letter.position, letter.due_at, letter.reason
    from (
        select position
        from due_keyed
        union all
        select position
        from due_keyless
    ) as due
    inner join pillarbox.inbox_dead_letter as letter on letter.position operator(pg_catalog.=) due.position
    where
        letter.state operator(pg_catalog.=) 'parked'
        and (letter.due_at is null or letter.due_at operator(pg_catalog.<=) pg_catalog.clock_timestamp())
    for update of letter skip locked
),
page as (
    select position, due_at is not null or reason operator(pg_catalog.<>) all ('{waiting,parked}') as again
    from head
    union all
    select
        following.position,
        following.due_at is not null or following.reason operator(pg_catalog.<>) all ('{waiting,parked}')
    from head
    cross join lateral (
        select
            position,
            due_at,
            reason,
            state,
            pg_catalog.bool_and(may_follow) over (order by position) as all_may,
            pg_catalog.sum(size) over (order by position) as bytes
        from (
            select
                position,
                due_at,
                reason,
                state,
                pg_catalog.octet_length(payload) as size,
                case
                    when position operator(pg_catalog.=) head.position then true
                    when state operator(pg_catalog.=) 'dead' then not $2
                    else
                        (due_at is null or due_at operator(pg_catalog.<=) pg_catalog.clock_timestamp())
                        and ($2 or reason operator(pg_catalog.<>) 'parked')
                end as may_follow
            from pillarbox.inbox_dead_letter
            where
                consumer operator(pg_catalog.=) $1
                and coalesce(stream, '') operator(pg_catalog.=) $5
                and key operator(pg_catalog.=) head.key
                and position operator(pg_catalog.>=) head.position
                and state operator(pg_catalog.=) any ('{dead,parked}')
            order by position
            limit 200
        ) as next_ones
    ) as following
    where
        following.all_may
        and following.bytes operator(pg_catalog.<=) 4194304
        and following.position operator(pg_catalog.>) head.position
        and following.state operator(pg_catalog.=) 'parked'
),
taken as (
    update pillarbox.inbox_dead_letter as letter
    set due_at =
        pg_catalog.clock_timestamp()
        operator(pg_catalog.+) ($3::bigint::double precision operator(pg_catalog.*) interval '1 millisecond')
    from page
    where letter.position operator(pg_catalog.=) page.position and letter.state operator(pg_catalog.=) 'parked'
    returning letter.*, page.again
)
select
    taken.*,
    case
        when (select pg_catalog.count(1) from due_keyed) operator(pg_catalog.>=) $4 then (select pg_catalog.max(key) from due_keyed)
        when (select pg_catalog.count(1) from keyed) operator(pg_catalog.>=) 256 then (select pg_catalog.max(key) from keyed)
        else ''
    end as after_key,
    case
        when (select pg_catalog.count(1) from due_keyless) operator(pg_catalog.>=) $4 then (select pg_catalog.max(position) from due_keyless)
        when (select pg_catalog.count(1) from keyless) operator(pg_catalog.>=) 256 then (select pg_catalog.max(position) from keyless)
        else 0
    end as after_position,
    (
        select pg_catalog.min(first_failed_at)
        from free
        where reason operator(pg_catalog.=) any ('{waiting,parked}')
    ) as waiting_since
from (select) as always
left join taken on true
order by taken.position
