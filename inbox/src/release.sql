-- Lets an event that was given up be handled again: $1 consumer, $2 event id.
with released as (
    update pillarbox.inbox_dead_letter
    set state = 'retried', resolved_at = clock_timestamp()
    where consumer = $1 and event_id = $2 and state = 'dead'
    returning consumer, event_id
),
unmarked as (
    delete from pillarbox.inbox
    using released
    where inbox.consumer = released.consumer and inbox.event_id = released.event_id
)
select exists (select from released)
