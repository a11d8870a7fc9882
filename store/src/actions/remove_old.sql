-- Removes operators' actions that are older than $1 seconds, at most 1,000 of them.
delete from pillarbox.operator_action
where
    id operator(pg_catalog.=) any (
        array(
            select id
            from pillarbox.operator_action
            where
                at operator(pg_catalog.<) (
                    pg_catalog.clock_timestamp()
                    operator(pg_catalog.-) ($1::bigint::double precision operator(pg_catalog.*) interval '1 second')
                )
            order by id
            limit 1000
        )
    )
