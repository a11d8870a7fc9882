-- Gives an event up, in one statement: the dead letter, the event as handled, and no failure any more.
--
--   $1 consumer   $2 event id   $3 type   $4 topic   $5 key   $6 headers   $7 payload
--   $8 reason     $9 error      $10 attempts   $11 whether its own handler has recorded it, by a commit of its own
--
-- If the event is handled already, by another delivery, it is no dead letter: then nothing is written. One that
-- was parked counts as handled, too, and is dead again.
with claimed as (
    insert into pillarbox.inbox (consumer, event_id)
    values ($1, $2)
    on conflict do nothing
    returning event_id
),
unclaimed as (
    select event_id from claimed
    union all
    select $2 where $11 and not exists (select from claimed)
),
failure as (
    delete from pillarbox.inbox_failure
    where consumer = $1 and event_id = $2
    returning first_failed_at
),
buried as (
    insert into pillarbox.inbox_dead_letter
        (consumer, event_id, event_type, topic, key, headers, payload, reason, error, attempts, first_failed_at)
    select
        $1, $2, $3, $4, $5, $6::text::jsonb, $7, $8, $9, $10,
        coalesce((select first_failed_at from failure), clock_timestamp())
    from unclaimed
    on conflict (consumer, event_id) do update
    set
        reason = excluded.reason,
        error = excluded.error,
        attempts = excluded.attempts,
        first_failed_at = excluded.first_failed_at,
        dead_at = clock_timestamp(),
        state = 'dead',
        resolved_at = null
    returning event_id
),
dead_again as (
    update pillarbox.inbox_dead_letter
    set state = 'dead', reason = $8, error = $9, attempts = attempts + $10, dead_at = clock_timestamp(), due_at = null
    where consumer = $1 and event_id = $2 and state = 'parked' and not exists (select from claimed)
    returning event_id
)
select exists (select from buried) or exists (select from dead_again)
