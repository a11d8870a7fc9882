-- Marks an event that was delivered before as begun, and returns what was known of it: $1 consumer, $2 identity, $3
-- whether it runs alone, $4 and $5 id and source as plain texts, $6 whether it is taken from the dead letters.
--
-- `started` is the step of suspicion; killers.rs draws the steps. If a process died while it held the event back (steps
-- 3 and 5), the process died for reasons of its own, unless this process itself did so and now runs the event alone.
with handled as (
    select
    from pillarbox.inbox
    where
        consumer operator(pg_catalog.=) $1
        and event_id operator(pg_catalog.=) $2
        -- A parked event is still to be handled, from the table.
        and not ($6 and exists (
            select
            from pillarbox.inbox_dead_letter
            where
                consumer operator(pg_catalog.=) $1
                and coalesce(identity, event_id) operator(pg_catalog.=) $2
                and event_type is not null
                and state operator(pg_catalog.=) 'parked'
        ))
),
known as (
    select started, started_at
    from pillarbox.inbox_failure
    where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) $2
),
own_death as (
    insert into pillarbox.inbox_own_death (consumer, died_at)
    select $1, pg_catalog.clock_timestamp()
    from known
    where
        started operator(pg_catalog.=) any ('{3,5}')
        and not $3
        -- Another process has handled it since, so nobody died of or beside it.
        and not exists (select from handled)
    on conflict (consumer) do update
    set died_at = excluded.died_at
),
marked as (
    insert into pillarbox.inbox_failure as failure
        (consumer, event_id, attempts, started, started_at, last_error, id, source)
    select $1, $2, 0, 1, pg_catalog.clock_timestamp(), '', $4, $5
    where not exists (select from handled)
    on conflict (consumer, event_id) do update
    set
        started = case
            when
                failure.started operator(pg_catalog.=) any ('{2,4}')
                or ($3 and failure.started operator(pg_catalog.=) any ('{1,3}'))
                then failure.started operator(pg_catalog.+) 1
            else 1
        end,
        started_at = pg_catalog.clock_timestamp()
    where failure.started operator(pg_catalog.<>) 1 or $3
)
select
    exists (select from handled),
    coalesce((select started from known), 0),
    coalesce(
        (select extract(epoch from pg_catalog.clock_timestamp() operator(pg_catalog.-) started_at) from known),
        0
    )::double precision,
    exists (
        select
        from pillarbox.inbox_own_death
        where
            consumer operator(pg_catalog.=) $1
            and died_at operator(pg_catalog.>) (pg_catalog.clock_timestamp() operator(pg_catalog.-) interval '1 day')
    )
