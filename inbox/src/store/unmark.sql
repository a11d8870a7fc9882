-- Removes the marks of events that have ended: $1 consumer, $2 event ids.
--
-- An event that is held back has not begun: whoever sees it next holds it back again.
with ended as (
    update pillarbox.inbox_failure
    set started = case
        when started operator(pg_catalog.=) any ('{3,5}') then started operator(pg_catalog.-) 1
        else 0
    end
    where
        consumer operator(pg_catalog.=) $1
        and event_id operator(pg_catalog.=) any ($2)
        and (
            attempts operator(pg_catalog.+) outages operator(pg_catalog.+) uncounted operator(pg_catalog.>) 0
            or started operator(pg_catalog.=) any ('{3,5}')
        )
)
delete from pillarbox.inbox_failure
where
    consumer operator(pg_catalog.=) $1
    and event_id operator(pg_catalog.=) any ($2)
    and attempts operator(pg_catalog.+) outages operator(pg_catalog.+) uncounted operator(pg_catalog.=) 0
    and started operator(pg_catalog.<>) all ('{3,5}')
