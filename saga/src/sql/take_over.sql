-- Gives an instance of a saga that was renamed its new name: $1 the name, $2 the former names, $3 id. Its history goes
-- with it. Nothing is done if there is an instance of the new name already.
--
-- This and the other statements run in the handler's transaction, with the service's search_path. So they take operators,
-- functions and types from pg_catalog.
update pillarbox.saga
set saga = $1
where
    saga operator(pg_catalog.=) any ($2)
    and id operator(pg_catalog.=) $3
    and not exists (
        select
        from pillarbox.saga as new
        where new.saga operator(pg_catalog.=) $1 and new.id operator(pg_catalog.=) $3
    )
