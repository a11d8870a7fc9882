-- Parks events of one key, in their order. They then count as handled, so that repeated deliveries are skipped.
--
--   $1 consumer   $2 identities   $3 event ids   $4 stream, or ''   $5 types   $6 topics   $7 key   $8 headers
--   $9 payloads   $10 whether only behind another one of the key that waits here   $11 whether the order is strict
--   $12 how many milliseconds the first of them waits, or null   $13 which of them may have been begun before
--   $14 whether the first of them has not failed, but its type is paused
--
-- Either all events that are not yet handled or parked are parked, or none. None is parked if there is nothing to wait
-- behind ($10), or if 10,000 events or 256 MiB already wait in the table behind failing events. Events that a strict
-- order parks behind a dead letter have no such limit.
--
-- The claims are made in the order of the identities, so that two processes wait for each other and do not deadlock.
-- Returns whether there was something to wait behind, whether there was room, which events were claimed, and how many
-- letters were stored. About events that were not claimed, recorded.sql is asked.
with event as (
    select *
    from
        rows from (
            pg_catalog.unnest($2::pg_catalog.text[]),
            pg_catalog.unnest($3::pg_catalog.text[]),
            pg_catalog.unnest($5::pg_catalog.text[]),
            pg_catalog.unnest($6::pg_catalog.text[]),
            pg_catalog.unnest($8::pg_catalog.text[]),
            pg_catalog.unnest($9::pg_catalog.bytea[]),
            pg_catalog.unnest($13::boolean[])
        ) with ordinality as event (identity, event_id, event_type, topic, headers, payload, again, number)
),
look as (
    select
        exists (
            select
            from pillarbox.inbox_dead_letter
            where
                consumer operator(pg_catalog.=) $1
                and coalesce(stream, '') operator(pg_catalog.=) $4
                and key operator(pg_catalog.=) $7
                and state operator(pg_catalog.=) 'parked'
                and ($11 or reason operator(pg_catalog.=) 'waiting')
        )
        or (
            $11
            and exists (
                select
                from pillarbox.inbox_dead_letter
                where
                    consumer operator(pg_catalog.=) $1
                    and coalesce(stream, '') operator(pg_catalog.=) $4
                    and key operator(pg_catalog.=) $7
                    and state operator(pg_catalog.=) 'dead'
            )
        ) as behind,
        (
            select
                pg_catalog.count(1) operator(pg_catalog.<) 10000
                and coalesce(pg_catalog.sum(size), 0) operator(pg_catalog.<) 268435456
            from (
                select pg_catalog.octet_length(payload) as size
                from pillarbox.inbox_dead_letter
                where
                    consumer operator(pg_catalog.=) $1
                    and coalesce(stream, '') operator(pg_catalog.=) $4
                    and state operator(pg_catalog.=) 'parked'
                    and reason operator(pg_catalog.=) 'waiting'
                limit 10000
            ) as waiting
        ) as room
),
claimed as (
    insert into pillarbox.inbox (consumer, event_id)
    select $1, event.identity
    from event
    cross join look
    where look.room and (look.behind or not $10)
    order by event.identity
    on conflict do nothing
    returning event_id
),
parked as (
    insert into pillarbox.inbox_dead_letter
        (consumer, identity, event_id, stream, event_type, topic, key, headers, payload,
         reason, error, attempts, first_failed_at, state, due_at)
    select
        $1,
        case when event.identity operator(pg_catalog.<>) event.event_id then event.identity end,
        event.event_id,
        case when $4 operator(pg_catalog.<>) '' then $4 end,
        event.event_type,
        event.topic,
        $7,
        event.headers::pg_catalog.jsonb,
        event.payload,
        case when $11 then 'parked' else 'waiting' end,
        case
            when $10 or event.number operator(pg_catalog.>) 1 then 'it waits behind an earlier event of its key'
            when $14 then 'events of its type are paused'
            else 'it failed and is tried again, with later events of its key behind it'
        end,
        0,
        pg_catalog.clock_timestamp(),
        'parked',
        case
            when event.number operator(pg_catalog.=) 1 and $12 is not null
                then pg_catalog.clock_timestamp() operator(pg_catalog.+) ($12::bigint::double precision operator(pg_catalog.*) interval '1 millisecond')
            -- This tells the process that takes the event.
            when event.again then pg_catalog.clock_timestamp()
        end
    from event
    inner join claimed on claimed.event_id operator(pg_catalog.=) event.identity
    order by event.number
    -- A letter that was resolved so long ago that the event was forgotten.
    on conflict (consumer, coalesce(identity, event_id)) where event_type is not null do update
    set
        position = default,
        stream = excluded.stream,
        reason = excluded.reason,
        error = excluded.error,
        dead_at = pg_catalog.clock_timestamp(),
        state = 'parked',
        due_at = excluded.due_at,
        resolved_at = null
    returning position
)
select
    look.behind,
    look.room,
    (select coalesce(pg_catalog.array_agg(event_id), '{}') from claimed) as claimed,
    (select pg_catalog.count(1) from parked) as stored
from look
