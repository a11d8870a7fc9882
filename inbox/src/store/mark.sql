-- Marks an event that was delivered before as begun, and says what was known of it: $1 consumer, $2 identity,
-- $3 whether it runs alone, $4 and $5 id and source in clear.
--
-- `started` counts the beginnings without an end. The second is only marked for an event that runs alone; see
-- suspects.rs.
with handled as (
    select
    from pillarbox.inbox
    where
        consumer operator(pg_catalog.=) $1
        and event_id operator(pg_catalog.=) $2
        -- What is parked is to be handled yet.
        and not exists (
            select
            from pillarbox.inbox_dead_letter
            where
                consumer operator(pg_catalog.=) $1
                and coalesce(identity, event_id) operator(pg_catalog.=) $2
                and event_type is not null
                and state operator(pg_catalog.=) 'parked'
        )
),
known as (
    select started
    from pillarbox.inbox_failure
    where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) $2
),
marked as (
    insert into pillarbox.inbox_failure as failure
        (consumer, event_id, attempts, started, last_error, id, source)
    select $1, $2, 0, 1, '', $4, $5
    where not exists (select from handled)
    on conflict (consumer, event_id) do update
    set started = failure.started operator(pg_catalog.+) 1
    where failure.started operator(pg_catalog.=) 0 or ($3 and failure.started operator(pg_catalog.=) 1)
)
select exists (select from handled), coalesce((select started from known), 0)
