-- The keys that wait behind an unresolved dead letter: $1 relay name.
select distinct key
from pillarbox.outbox_dead_letter
where relay = $1 and state in ('dead', 'parked') and key is not null
