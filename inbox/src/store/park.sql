-- Parks an event behind the dead or waiting events of its key. It then counts as handled, so that a repeated delivery
-- is skipped.
--
--   $1 consumer   $2 identity   $3 event id   $4 stream   $5 type   $6 topic   $7 key   $8 headers   $9 payload
--   $10 whether the order is strict
--
-- Returns whether it was parked, and whether it was already handled or parked. If neither is true, nothing is known,
-- and everything must be rolled back.
with claimed as (
    insert into pillarbox.inbox (consumer, event_id)
    values ($1, $2)
    on conflict do nothing
    returning event_id
),
parked as (
    insert into pillarbox.inbox_dead_letter
        (consumer, identity, event_id, stream, event_type, topic, key, headers, payload,
         reason, error, attempts, first_failed_at, state)
    select
        $1, case when $2 operator(pg_catalog.<>) $3 then $2 end, $3, $4, $5, $6, $7, $8::pg_catalog.text::pg_catalog.jsonb, $9,
        case when $10 then 'parked' else 'waiting' end,
        case
            when $10 then 'an earlier event of its key is a dead letter'
            else 'it waits behind an earlier event of its key'
        end,
        0, pg_catalog.clock_timestamp(), 'parked'
    from claimed
    -- A letter that was resolved so long ago that the event was forgotten.
    on conflict (consumer, coalesce(identity, event_id)) where event_type is not null do update
    set
        position = default,
        stream = excluded.stream,
        reason = excluded.reason,
        error = excluded.error,
        dead_at = pg_catalog.clock_timestamp(),
        state = 'parked',
        due_at = null,
        resolved_at = null
    returning position
)
select
    exists (select from parked) as stored,
    exists (select from pillarbox.inbox where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) $2) as there
