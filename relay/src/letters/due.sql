-- Parked events that may be shipped now, in order: $1 relay name, $2 whether the order is strict, $3 how many.
--
-- With a strict order, nothing of a key is due while an earlier event of it is dead.
select
    letter.position,
    letter.event_id,
    letter.event_type,
    letter.topic,
    letter.key,
    nullif(letter.headers, '{}')::text as headers,
    letter.payload,
    letter.created_at,
    letter.attempts
from pillarbox.outbox_dead_letter as letter
where
    letter.relay = $1
    and letter.state = 'parked'
    and not (
        $2
        and exists (
            select
            from pillarbox.outbox_dead_letter as earlier
            where
                earlier.relay = letter.relay
                and earlier.state = 'dead'
                and earlier.key = letter.key
                and earlier.position < letter.position
        )
    )
order by letter.position
limit $3
