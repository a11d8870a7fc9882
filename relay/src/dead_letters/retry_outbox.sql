-- Puts an event back into the outbox, behind all others, under its old id: $1 its old position.
with retried as (
    update pillarbox.outbox_dead_letter
    set state = 'retried', resolved_at = clock_timestamp()
    where position = $1 and state = 'dead'
    returning event_id, event_type, topic, key, headers, payload, created_at
),
again as (
    insert into pillarbox.outbox (event_id, event_type, topic, key, headers, payload, created_at)
    select event_id, event_type, topic, key, headers, payload, created_at
    from retried
)
select exists (select from retried)
