-- The keys that wait behind an unresolved dead letter, or behind an event whose letter the table did not take: $1 relay
-- name.
select distinct key
from (
    select key
    from pillarbox.outbox_dead_letter
    where relay = $1 and state in ('dead', 'parked')
    union all
    select outbox.key
    from pillarbox.relay
    cross join lateral jsonb_array_elements(relay.held) as noted
    join pillarbox.outbox on outbox.position = (noted ->> 'position'::text)::bigint
    where relay.name = $1
) as waiting
where key is not null
