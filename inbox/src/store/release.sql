-- Lets an event that was given up be handled again: $1 consumer, $2 identity, $3 whether the order is strict.
--
-- Not while an earlier one of its key is parked, or, in a strict order, dead; nor, whoever asks, while one is dead
-- behind which it was parked.
with released as (
    update pillarbox.inbox_dead_letter as letter
    set state = 'retried', resolved_at = clock_timestamp()
    where
        consumer = $1
        and coalesce(identity, event_id) = $2
        and event_type is not null
        and state in ('dead', 'parked')
        and not exists (
            select
            from pillarbox.inbox_dead_letter as earlier
            where
                earlier.consumer = letter.consumer
                and earlier.key = letter.key
                and earlier.stream is not distinct from letter.stream
                and earlier.position < letter.position
                and (earlier.state = 'parked' or (($3 or letter.reason = 'parked') and earlier.state = 'dead'))
        )
    returning position
),
unmarked as (
    delete from pillarbox.inbox
    where consumer = $1 and event_id = $2 and exists (select from released)
)
select exists (select from released)
