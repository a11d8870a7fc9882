-- Which of these keys wait behind an unresolved dead letter: $1 consumer, $2 keys.
select distinct key
from pillarbox.inbox_dead_letter
where consumer = $1 and key = any ($2) and state in ('dead', 'parked')
