-- Which of these events are recorded as handled: $1 consumer, $2 event ids. A row for each that is.
--
-- A statement of its own, behind the claim: one that waited for another transaction cannot see in its own snapshot what
-- that one committed. The row names consumer and event, so that no other statement's answer is taken for this one's.
select consumer, event_id
from pillarbox.inbox
where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) any ($2::pg_catalog.text[])
