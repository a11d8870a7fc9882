-- Removes dead letters that were resolved long ago: $1 consumer, $2 retention in seconds.
delete from pillarbox.inbox_dead_letter
where
    consumer = $1
    and position = any (
        array(
            select position
            from pillarbox.inbox_dead_letter
            where
                consumer = $1
                and state in ('retried', 'discarded')
                and coalesce(resolved_at, dead_at) < clock_timestamp() - ($2::bigint::float8 operator(pg_catalog.*) interval '1 second')
            limit 1000
            for update skip locked
        )
    )
