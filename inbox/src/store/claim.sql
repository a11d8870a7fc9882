-- Records an event as handled: $1 consumer, $2 event id. One row, with what is known of failed attempts at it,
-- or none for a duplicate.
--
-- The insert is the lock. While another transaction is handling the event, it waits for that one's end; if that
-- one commits, nothing is inserted here, and the event is a duplicate. The failure stays until the handler has
-- succeeded, so that recording another one never waits for this transaction.
insert into pillarbox.inbox (consumer, event_id)
values ($1, $2)
on conflict do nothing
returning (select attempts from pillarbox.inbox_failure where consumer = $1 and event_id = $2)
