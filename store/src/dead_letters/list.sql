-- Dead letters of one side, oldest first. In place of the braces come the columns in which the sides' tables
-- differ, under the same names for both sides, and which letters there are.
--
--   $1 event id (the side's statement compares it), $2 reason, $3 topic, $4 key, $5 relay or consumer: each null for any
--   $6 at least this old, in seconds      $7 at most so many      $8 state, or null for the unresolved
--   $9 position, $10 source: null for any
--   $11 the largest payload that is listed with its letter      $12 the letters, or null for any
--   $13 event type, $14 a pattern for the error: null for any      $15 at most this old, in seconds, or null
--
-- The size of the list is bounded: of a larger payload, or of larger headers, only the size is returned. A letter may
-- hold an infinite time.
select
    letter,
    position,
    owner,
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
    whole,
    case when isfinite(dead_at) then extract(epoch from clock_timestamp() - dead_at)::float8 else 0 end as age,
    edited_at::text as edited_at
from (
select
    event_type, topic, key, headers, payload, state, reason, error, attempts, dead_at, edited_at,
{letters}
) as letters
where
    state = any (case when $8::text is null then array['dead', 'parked'] else array[$8] end)
    and ($2::text is null or reason = $2)
    and ($3::text is null or topic = $3)
    and ($4::text is null or key = $4)
    and ($5::text is null or owner = $5)
    and ($9::bigint is null or position = $9)
    and ($10::text is null or headers ->> 'ce-source'::text = $10)
    and ($12::bigint[] is null or letter = any ($12))
    and ($13::text is null or event_type = $13)
    and ($14::text is null or error ilike $14)
    and ($15::bigint is null or dead_at >= clock_timestamp() - $15::float8 * interval '1 second')
    and dead_at <= clock_timestamp() - $6::float8 * interval '1 second'
order by dead_at, position, letter
limit $7
