-- Gives an event up, in one statement: writes the dead letter, records the event as handled, and removes what is known
-- of failed attempts.
--
--   $1 consumer   $2 identity   $3 event id   $4 stream   $5 type   $6 topic   $7 key   $8 headers   $9 payload
--   $10 reason    $11 error     $12 attempts  $13 whether the event's handler has already recorded it, by a commit
--
-- Returns whether the letter was stored, and whether another delivery had already handled the event; then nothing is
-- written. If neither is true, nothing is known, and everything must be rolled back. A parked event also counts as
-- handled, and becomes dead again.
with claimed as (
    insert into pillarbox.inbox (consumer, event_id)
    values ($1, $2)
    on conflict do nothing
    returning event_id
),
unclaimed as (
    select event_id from claimed
    union all
    select $2 where $13 and not exists (select from claimed)
),
failure as (
    delete from pillarbox.inbox_failure
    where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) $2
    returning first_failed_at
),
buried as (
    insert into pillarbox.inbox_dead_letter
        (consumer, identity, event_id, stream, event_type, topic, key, headers, payload,
         reason, error, attempts, first_failed_at)
    select
        $1, case when $2 operator(pg_catalog.<>) $3 then $2 end, $3, $4, $5, $6, $7, $8::pg_catalog.text::pg_catalog.jsonb, $9, $10, $11, $12,
        coalesce((select first_failed_at from failure), pg_catalog.clock_timestamp())
    from unclaimed
    on conflict (consumer, coalesce(identity, event_id)) where event_type is not null do update
    set
        stream = excluded.stream,
        reason = excluded.reason,
        error = excluded.error,
        attempts = excluded.attempts,
        first_failed_at = excluded.first_failed_at,
        dead_at = pg_catalog.clock_timestamp(),
        state = 'dead',
        resolved_at = null
    returning event_id
),
dead_again as (
    update pillarbox.inbox_dead_letter
    set
        state = 'dead',
        reason = $10,
        error = $11,
        attempts = attempts operator(pg_catalog.+) $12,
        dead_at = pg_catalog.clock_timestamp(),
        due_at = null
    where
        consumer operator(pg_catalog.=) $1
        and coalesce(identity, event_id) operator(pg_catalog.=) $2
        and event_type is not null
        and state operator(pg_catalog.=) 'parked'
        and not exists (select from claimed)
    returning event_id
)
select
    exists (select from buried) or exists (select from dead_again) as stored,
    exists (select from pillarbox.inbox where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) $2) as there
