-- Records many events as handled: $1 consumer, $2 event ids. A row for each that is recorded, with what is known
-- of failed attempts at it; none for a duplicate.
--
-- In the order of their ids, so that two batches with the same events wait for one another, and do not deadlock.
with claimed as (
    insert into pillarbox.inbox (consumer, event_id)
    select $1, id
    from unnest($2::text[]) as id
    order by id
    on conflict do nothing
    returning event_id
)
select claimed.event_id, failure.attempts
from claimed
left join pillarbox.inbox_failure as failure
    on failure.consumer = $1 and failure.event_id = claimed.event_id
