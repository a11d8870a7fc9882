-- Sets aside a message that is no event: writes a dead letter, and records no event as handled.
--
--   $1 consumer   $2 the letter's id   $3 stream   $4 its sequence there   $5 when it was stored there
--   $6 topic      $7 headers           $8 payload  $9 error
--
-- Its identity is its place in the stream. An id that it claims is as unreliable as the rest, and the event that really
-- has this id may still come. Returns whether the letter was stored, and whether another delivery of this message had
-- already stored it.
with stored as (
    insert into pillarbox.inbox_dead_letter
        (consumer, event_id, stream, stream_sequence, stored_at, topic, headers, payload,
         reason, error, attempts, first_failed_at)
    values ($1, $2, $3, $4, $5, $6, $7::pg_catalog.text::pg_catalog.jsonb, $8, 'undecodable', $9, 0, pg_catalog.clock_timestamp())
    on conflict do nothing
    returning position
)
select
    exists (select from stored) as stored,
    exists (
        select
        from pillarbox.inbox_dead_letter
        where
            consumer operator(pg_catalog.=) $1
            and stream operator(pg_catalog.=) $3
            and stream_sequence operator(pg_catalog.=) $4
            and stored_at operator(pg_catalog.=) $5
            and event_type is null
    ) as there
