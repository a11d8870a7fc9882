-- Which of these keys wait behind an unresolved dead letter: $1 consumer, $2 keys, $3 the stream that they are of.
--
-- A key is one within its stream.
select distinct key
from pillarbox.inbox_dead_letter
where
    consumer operator(pg_catalog.=) $1
    and key operator(pg_catalog.=) any ($2)
    and state operator(pg_catalog.=) any ('{dead,parked}')
    and ($3::pg_catalog.text is null or stream is null or stream operator(pg_catalog.=) $3)
