-- Which of these keys wait behind an unresolved dead letter: $1 consumer, $2 keys, $3 the stream that they are of.
--
-- A key is one within its stream.
select distinct key
from pillarbox.inbox_dead_letter
where
    consumer = $1
    and key = any ($2)
    and state in ('dead', 'parked')
    and ($3::text is null or stream is null or stream = $3)
