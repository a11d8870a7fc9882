-- Marks an event that was delivered before as begun, and says what was known of it: $1 consumer, $2 event id,
-- $3 whether it runs alone.
--
-- `started` counts the beginnings without an end. The second is only marked for an event that runs alone; see
-- suspects.rs.
with handled as (
    select
    from pillarbox.inbox
    where
        consumer = $1
        and event_id = $2
        -- What is parked is to be handled yet.
        and not exists (
            select
            from pillarbox.inbox_dead_letter
            where consumer = $1 and event_id = $2 and state = 'parked'
        )
),
known as (
    select started from pillarbox.inbox_failure where consumer = $1 and event_id = $2
),
marked as (
    insert into pillarbox.inbox_failure as failure (consumer, event_id, attempts, started, last_error)
    select $1::text, $2::text, 0, 1, ''
    where not exists (select from handled)
    on conflict (consumer, event_id) do update
    set started = failure.started + 1
    where failure.started = 0 or ($3 and failure.started = 1)
)
select exists (select from handled), coalesce((select started from known), 0)
