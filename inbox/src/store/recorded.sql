-- Which of these events are recorded as handled: $1 consumer, $2 event ids. Returns a row for each recorded event.
--
-- This is a statement of its own after the claim, because a claim that waited for another transaction cannot see in its
-- own snapshot what that transaction committed. The row names consumer and event, so that the answer to another
-- statement is not taken for this one's.
select consumer, event_id
from pillarbox.inbox
where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) any ($2::pg_catalog.text[])
