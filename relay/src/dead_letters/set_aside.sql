-- Sets copies of events aside, and may move the cursor in the same statement. It does all of this or nothing, and
-- nothing unless this leader still holds the lease.
--
--   $1 relay name   $2 epoch   $3 cursor, or null to leave it
--   $4 positions    $5 states: dead, or parked behind a dead event of their key
--   $6 reasons      $7 errors  $8 attempts
--   $9 the columns of each that cannot be copied, with commas between them
--
-- The cursor passes these events in this statement or later. If this leader ends before that, its successor reads them
-- again. So an event that has a letter gets no second one. A letter belongs to the same event if it is of this relay
-- and has the same place *and* the same content. Positions and even ids are used again when a table is emptied, and a
-- letter of an earlier event must not stand for a later one.
--
-- What becomes of an event that has a letter:
--
--   dead, parked   it stays as it is
--   discarded      it stays discarded, as an operator decided
--   retried        it was shipped, and the relay has gone back since, for example because the broker lost it:
--                  it becomes dead or parked again
--
-- A trigger on the table may leave out a row without an error. The answer names these events. They are neither shipped
-- nor set aside, so the cursor must not pass them.
--
-- If somebody dropped a constraint of the outbox, a null in a column becomes the nearest value that the letter may
-- hold. Columns that are copied unchanged are copied in their stored form, without decompression.
with held as (
    update pillarbox.relay
    set cursor = coalesce($3::text::jsonb, cursor)
    where name = $1 and epoch = $2
    returning name
),
given as (
    select
        held.name as relay,
        refused.position,
        refused.state,
        refused.reason,
        refused.error,
        refused.attempts,
        string_to_array(refused.lost, ',') as lost
    from held
    cross join
        unnest($4::bigint[], $5::text[], $6::text[], $7::text[], $8::integer[], $9::text[])
            as refused (position, state, reason, error, attempts, lost)
),
event as (
    select
        given.relay,
        given.position,
        coalesce(outbox.event_id, '00000000-0000-0000-0000-000000000000'::uuid) as event_id,
        coalesce(case when 'event_type' <> all (given.lost) then outbox.event_type end, '') as event_type,
        coalesce(case when 'topic' <> all (given.lost) then outbox.topic end, '') as topic,
        case when 'key' <> all (given.lost) then outbox.key end as key,
        coalesce(case when 'headers' <> all (given.lost) then outbox.headers end, '{}'::jsonb) as headers,
        coalesce(case when 'payload' <> all (given.lost) then outbox.payload end, ''::bytea) as payload,
        coalesce(outbox.created_at, '-infinity'::timestamptz) as created_at,
        given.reason,
        given.error,
        given.attempts,
        given.state,
        cardinality(given.lost) = 0 as whole
    from given
    inner join pillarbox.outbox on outbox.position = given.position
),
known as (
    select letter.letter, letter.state as stands, event.position, event.state, event.reason, event.error, event.attempts
    from event
    inner join pillarbox.outbox_dead_letter as letter
        on letter.position = event.position and letter.event_id = event.event_id and letter.relay = event.relay
    where
        case
            when letter.created_at <> event.created_at then false
            -- One of the two is not whole.
            when not (letter.whole and event.whole) then true
            when
                letter.event_type = event.event_type
                and letter.topic = event.topic
                and letter.key is not distinct from event.key
                and letter.payload = event.payload
                -- Larger ones are not decompressed for the comparison.
                then pg_column_size(event.headers) > 131072 or letter.headers = event.headers
            else false
        end
),
again as (
    update pillarbox.outbox_dead_letter as letter
    set
        state = known.state,
        reason = known.reason,
        error = known.error,
        attempts = letter.attempts + known.attempts,
        dead_at = clock_timestamp(),
        resolved_at = null
    from known
    where letter.letter = known.letter and known.stands = 'retried'
    returning letter.position
),
kept as (
    insert into pillarbox.outbox_dead_letter (
        position, relay, event_id, event_type, topic, key, headers, payload, created_at,
        reason, error, attempts, state, whole
    )
    select
        position, relay, event_id, event_type, topic, key, headers, payload, created_at,
        reason, error, attempts, state, whole
    from event
    where not exists (select from known where known.position = event.position)
    order by position
    returning position
)
select
    (select count(*) from held) as held,
    array(select given.position from given where not exists (select from event where event.position = given.position)) as gone,
    array(
        select event.position
        from event
        where
            not exists (select from known where known.position = event.position and known.stands <> 'retried')
            and not exists (select from again where again.position = event.position)
            and not exists (select from kept where kept.position = event.position)
        order by event.position
    ) as left_out,
    array(select position from kept union all select position from again) as new
