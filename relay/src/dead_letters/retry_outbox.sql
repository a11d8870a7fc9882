-- Leaves a dead event to the relay, which ships what is parked: $1 its position.
with retried as (
    update pillarbox.outbox_dead_letter
    set state = 'parked'
    where position = $1 and state = 'dead'
    returning position
)
select exists (select from retried)
