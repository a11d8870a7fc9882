-- Says how a process of a consumer is, and returns what operators have paused and limited: $1 consumer, $2 process,
-- $3 stream, $4 host, $5 state, $6 reason, $7 pending, $8 unacknowledged, $9 age of the oldest, $10 how many milliseconds
-- ago that was measured.
--
-- Processes that were not seen for an hour are removed. There is a row for each pause, one for the rate, and always one
-- with the kind `told`, which proves that this answer is one.
with told as (
    insert into pillarbox.inbox_member as member
        (consumer, process, stream, host, state, reason, pending, ack_pending, oldest_age, measured_at)
    values (
        $1, $2, $3, $4, $5, $6, $7, $8, $9,
        pg_catalog.clock_timestamp()
        operator(pg_catalog.-) ($10::bigint::double precision operator(pg_catalog.*) interval '1 millisecond')
    )
    on conflict (consumer, process) do update
    set
        state = excluded.state,
        reason = excluded.reason,
        pending = excluded.pending,
        ack_pending = excluded.ack_pending,
        oldest_age = excluded.oldest_age,
        measured_at = excluded.measured_at,
        seen_at = pg_catalog.clock_timestamp()
    returning process
),
forgotten as (
    delete from pillarbox.inbox_member
    where
        consumer operator(pg_catalog.=) $1
        and process operator(pg_catalog.<>) $2
        and seen_at operator(pg_catalog.<) (pg_catalog.clock_timestamp() operator(pg_catalog.-) interval '1 hour')
)
select
    'told'::pg_catalog.text as kind,
    process as event_type,
    ''::pg_catalog.text as who,
    null::pg_catalog.text as note,
    pg_catalog.clock_timestamp() as since,
    null::double precision as per_second
from told
union all
select 'pause', event_type, paused_by, note, paused_at, null
from pillarbox.inbox_pause
where consumer operator(pg_catalog.=) $1
union all
select 'rate', '', set_by, note, set_at, per_second
from pillarbox.inbox_rate
where consumer operator(pg_catalog.=) $1
