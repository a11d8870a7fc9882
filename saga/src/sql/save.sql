-- Writes an instance after a step, and adds the step to its history: $1 saga, $2 id, $3 the version before, $4 state,
-- $5 step, $6 status, $7 whether it has ended, $8 timers, $9 compensations, $10 failure; $11 event id, $12 type, $13 the
-- step before, $14 published, $15 timers set, $16 timers cancelled, $17 note; $18 how many entries are kept beside the
-- first. Returns the new version.
--
-- Entries are numbered by the version, so at most one is beyond that number.
with saved as (
    update pillarbox.saga
    set
        state = $4::pg_catalog.text::pg_catalog.jsonb,
        step = $5,
        status = $6,
        version = version operator(pg_catalog.+) 1,
        updated_at = pg_catalog.clock_timestamp(),
        ended_at = case when $7::pg_catalog.bool then pg_catalog.clock_timestamp() end,
        timers = $8::pg_catalog.text::pg_catalog.jsonb,
        compensations = $9::pg_catalog.text::pg_catalog.jsonb,
        failure = $10
    where
        saga operator(pg_catalog.=) $1
        and id operator(pg_catalog.=) $2
        and version operator(pg_catalog.=) $3
    returning version
),

noted as (
    insert into pillarbox.saga_history (
        saga, id, seq, event_id, event_type, step_before, step_after, status, published, timers_set, timers_cancelled, note
    )
    select
        $1, $2, saved.version, $11, $12, $13, $5, $6,
        $14::pg_catalog.text::pg_catalog.jsonb,
        $15::pg_catalog.text::pg_catalog.jsonb,
        $16::pg_catalog.text::pg_catalog.jsonb,
        $17
    from saved
),

removed as (
    delete from pillarbox.saga_history
    where
        saga operator(pg_catalog.=) $1
        and id operator(pg_catalog.=) $2
        and seq operator(pg_catalog.>) 1
        and seq operator(pg_catalog.<=) ($3::bigint operator(pg_catalog.+) 1 operator(pg_catalog.-) $18::bigint)
)

select version from saved
