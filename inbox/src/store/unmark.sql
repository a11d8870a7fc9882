-- The events that were marked as begun have ended: $1 consumer, $2 event ids.
with ended as (
    update pillarbox.inbox_failure
    set started = 0
    where consumer = $1 and event_id = any ($2) and attempts + outages + uncounted > 0
)
delete from pillarbox.inbox_failure
where consumer = $1 and event_id = any ($2) and attempts + outages + uncounted = 0
