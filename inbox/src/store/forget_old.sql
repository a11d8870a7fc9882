-- Removes what is known of failed attempts at events that did not come again: $1 consumer, $2 retention in seconds.
delete from pillarbox.inbox_failure
where
    consumer operator(pg_catalog.=) $1
    and event_id operator(pg_catalog.=) any (
        array(
            select event_id
            from pillarbox.inbox_failure
            where
                consumer operator(pg_catalog.=) $1
                and last_failed_at operator(pg_catalog.<) (
                    pg_catalog.clock_timestamp()
                    operator(pg_catalog.-) ($2::bigint::double precision operator(pg_catalog.*) interval '1 second')
                )
            limit 1000
            for update skip locked
        )
    )
