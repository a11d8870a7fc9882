-- Leaves a dead event to the relay, which ships what is parked: $1 its letter.
with retried as (
    update pillarbox.outbox_dead_letter
    set state = 'parked'
    where letter = $1 and state = 'dead' and whole
    returning letter
)
select exists (select from retried)
