-- Ends an instance for an operator, and adds that to its history: $1 saga, $2 id, $3 the version before, $4 status, $5
-- whether it has ended, $6 timers, $7 compensations, $8 failure; $9 the action, $10 the step, $11 published, $12 timers
-- cancelled, $13 note. An action has no event id. Returns the new version.
with saved as (
    update pillarbox.saga
    set
        status = $4,
        version = version operator(pg_catalog.+) 1,
        updated_at = pg_catalog.clock_timestamp(),
        ended_at = case when $5::pg_catalog.bool then pg_catalog.clock_timestamp() end,
        timers = $6::pg_catalog.text::pg_catalog.jsonb,
        compensations = $7::pg_catalog.text::pg_catalog.jsonb,
        failure = $8
    where
        saga operator(pg_catalog.=) $1
        and id operator(pg_catalog.=) $2
        and version operator(pg_catalog.=) $3
    returning version
),

noted as (
    insert into pillarbox.saga_history (
        saga, id, seq, event_id, event_type, step_before, step_after, status, published, timers_cancelled, note
    )
    select
        $1, $2, saved.version, '', $9, $10, $10, $4,
        $11::pg_catalog.text::pg_catalog.jsonb,
        $12::pg_catalog.text::pg_catalog.jsonb,
        $13
    from saved
)

select version from saved
