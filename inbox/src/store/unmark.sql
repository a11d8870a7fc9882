-- The events that were marked as begun have ended: $1 consumer, $2 event ids.
with ended as (
    update pillarbox.inbox_failure
    set started = 0
    where
        consumer operator(pg_catalog.=) $1
        and event_id operator(pg_catalog.=) any ($2)
        and attempts operator(pg_catalog.+) outages operator(pg_catalog.+) uncounted operator(pg_catalog.>) 0
)
delete from pillarbox.inbox_failure
where
    consumer operator(pg_catalog.=) $1
    and event_id operator(pg_catalog.=) any ($2)
    and attempts operator(pg_catalog.+) outages operator(pg_catalog.+) uncounted operator(pg_catalog.=) 0
