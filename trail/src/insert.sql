-- Records messages of one life of a stream. Those that are there already stay as they are.
insert into pillarbox.trail (
    stream, stream_life, stored_at, sequence, event_id, identity, source, event_type, topic, key, correlation_id,
    causation_id, event_time, size, problem
)
select $1, $2, row.*
from unnest(
    $3::timestamptz[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[],
    $11::text[], $12::text[], $13::timestamptz[], $14::bigint[], $15::text[]
) as row
on conflict (stream, stream_life, sequence, stored_at) do nothing
