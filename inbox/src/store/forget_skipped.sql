-- Removes what is known of failed attempts at an event that came again and was handled already: $1 consumer,
-- $2 identity. A process that was slow to see it may have left that behind.
--
-- Not of one that is parked: it also counts as handled, and is to be handled yet, with the attempts that it has left.
delete from pillarbox.inbox_failure
where
    consumer operator(pg_catalog.=) $1
    and event_id operator(pg_catalog.=) $2
    and not exists (
        select
        from pillarbox.inbox_dead_letter
        where
            consumer operator(pg_catalog.=) $1
            and coalesce(identity, inbox_dead_letter.event_id) operator(pg_catalog.=) $2
            and event_type is not null
            and state operator(pg_catalog.=) 'parked'
    )
