-- Which of these keys have earlier events that must be handled first: $1 consumer, $2 keys, $3 their stream, $4 whether
-- the order is strict. With a strict order, these are all unresolved dead letters. Otherwise they are failing events
-- that others wait behind, and the waiting events.
--
-- A key is unique only within its stream.
select distinct key
from pillarbox.inbox_dead_letter
where
    consumer operator(pg_catalog.=) $1
    and key operator(pg_catalog.=) any ($2)
    and state operator(pg_catalog.=) any ('{dead,parked}')
    and ($4 or (state operator(pg_catalog.=) 'parked' and reason operator(pg_catalog.=) 'waiting'))
    and ($3::pg_catalog.text is null or stream is null or stream operator(pg_catalog.=) $3)
