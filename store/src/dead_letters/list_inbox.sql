-- Unresolved dead letters of an inbox, oldest first.
--
--   $1 event id, $2 reason, $3 topic, $4 key, $5 consumer: each null for any
--   $6 at least this old, in seconds      $7 at most so many      $8 state, or null for any
--   $9 position, $10 source: null for any
--   $11 the largest payload that is listed with its letter      $12 the letter, or null for any
--
-- An id is the event's own, its identity, or, of a message that is no event, what is written where an id would be.
select
    position as letter,
    position,
    consumer as owner,
    event_id,
    event_type,
    topic,
    key,
    case when pg_column_size(headers) <= 16384 and octet_length(headers::text) <= 131072 then headers::text end as headers,
    case when octet_length(payload) <= $11 then payload end as payload,
    octet_length(payload)::bigint as payload_bytes,
    state,
    reason,
    error,
    attempts,
    true as whole,
    extract(epoch from clock_timestamp() - dead_at)::float8 as age
from pillarbox.inbox_dead_letter
where
    state in ('dead', 'parked')
    and ($8::text is null or state = $8)
    and (
        $1::text is null
        or event_id = $1
        or identity = $1
        or (
            event_type is null
            and exists (
                select
                from jsonb_each_text(headers) as header
                where lower(header.key) in ('ce-id', 'nats-msg-id') and header.value = $1
            )
        )
    )
    and ($2::text is null or reason = $2)
    and ($3::text is null or topic = $3)
    and ($4::text is null or key = $4)
    and ($5::text is null or consumer = $5)
    and ($9::bigint is null or position = $9)
    and ($10::text is null or headers ->> 'ce-source'::text = $10)
    and ($12::bigint is null or position = $12)
    and dead_at <= clock_timestamp() - $6::float8 * interval '1 second'
order by dead_at, position
limit $7
