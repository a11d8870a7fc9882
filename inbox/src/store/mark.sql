-- Marks an event that was delivered before as begun, and says what was known of it: $1 consumer, $2 identity,
-- $3 whether it runs alone, $4 and $5 id and source in clear, $6 whether it is taken from the dead letters.
--
-- `started` is how far it is under suspicion; see suspects.rs, which draws the steps. Of what was held back when its
-- process died (3 and 5, unless this process did so and goes on to run it alone) that death was the process's own.
with handled as (
    select
    from pillarbox.inbox
    where
        consumer operator(pg_catalog.=) $1
        and event_id operator(pg_catalog.=) $2
        -- What is parked is to be handled yet, from there.
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
    where started operator(pg_catalog.=) any ('{3,5}') and not $3
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
