-- Removes what is known of failed attempts at events that never came again: $1 consumer, $2 retention in seconds.
delete from pillarbox.inbox_failure
where
    consumer = $1
    and event_id = any (
        array(
            select event_id
            from pillarbox.inbox_failure
            where consumer = $1 and last_failed_at < clock_timestamp() - ($2::bigint::float8 operator(pg_catalog.*) interval '1 second')
            limit 1000
            for update skip locked
        )
    )
