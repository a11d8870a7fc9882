-- Removes dead letters that were resolved longer ago than the retention: $1 consumer, $2 retention in seconds.
delete from pillarbox.inbox_dead_letter
where
    consumer operator(pg_catalog.=) $1
    and position operator(pg_catalog.=) any (
        array(
            select position
            from pillarbox.inbox_dead_letter
            where
                consumer operator(pg_catalog.=) $1
                and state operator(pg_catalog.=) any ('{retried,discarded}')
                and coalesce(resolved_at, dead_at) operator(pg_catalog.<) (
                    pg_catalog.clock_timestamp()
                    operator(pg_catalog.-) ($2::bigint::double precision operator(pg_catalog.*) interval '1 second')
                )
            limit 1000
            for update skip locked
        )
    )
