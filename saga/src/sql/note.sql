-- Adds an event that was not handled to the history of an instance, which stays as it is: $1 saga, $2 id, $3 the version
-- before, $4 event id, $5 type, $6 note, $7 how many entries are kept beside the first. Returns the new version.
with saved as (
    update pillarbox.saga
    set version = version operator(pg_catalog.+) 1
    where
        saga operator(pg_catalog.=) $1
        and id operator(pg_catalog.=) $2
        and version operator(pg_catalog.=) $3
    returning version, step, status
),

noted as (
    insert into pillarbox.saga_history (saga, id, seq, event_id, event_type, step_before, step_after, status, note)
    select $1, $2, saved.version, $4, $5, saved.step, saved.step, saved.status, $6
    from saved
),

removed as (
    delete from pillarbox.saga_history
    where
        saga operator(pg_catalog.=) $1
        and id operator(pg_catalog.=) $2
        and seq operator(pg_catalog.>) 1
        and seq operator(pg_catalog.<=) ($3::bigint operator(pg_catalog.+) 1 operator(pg_catalog.-) $7::bigint)
)

select version from saved
