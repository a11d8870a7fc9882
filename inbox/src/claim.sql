-- Records an event as handled, and takes back what is known of failed attempts at it: $1 consumer, $2 event id.
--
-- The insert is the lock. While another transaction is handling the event, it waits for that one's end; if that
-- one commits, nothing is inserted here, and the event is a duplicate. The failure is gone if this transaction
-- commits, and stays if it does not.
with claimed as (
    insert into pillarbox.inbox (consumer, event_id)
    values ($1, $2)
    on conflict do nothing
    returning event_id
),
failure as (
    delete from pillarbox.inbox_failure
    using claimed
    where inbox_failure.consumer = $1 and inbox_failure.event_id = claimed.event_id
    returning attempts
)
select exists (select from claimed), coalesce((select attempts from failure), 0)
