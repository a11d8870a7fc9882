-- Removes what is known of failed attempts at an event that came again and had already been handled: $1 consumer, $2
-- identity. A process that noticed that late may have left it.
--
-- Events that are parked are left out. They also count as handled, but are still to be handled, with the attempts that
-- they have left.
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
