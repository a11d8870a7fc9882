-- Removes up to 20 instances of a saga that ended long ago, with their history: $1 saga, $2 how many seconds ago.
delete from pillarbox.saga
where
    saga operator(pg_catalog.=) $1
    and id operator(pg_catalog.=) any (
        array(
            select id
            from pillarbox.saga
            where
                saga operator(pg_catalog.=) $1
                and ended_at operator(pg_catalog.<) (
                    pg_catalog.clock_timestamp()
                    operator(pg_catalog.-) pg_catalog.make_interval(secs => $2::double precision)
                )
            order by ended_at
            limit 20
            for update skip locked
        )
    )
