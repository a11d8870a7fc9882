-- A page of events to send again, in the order of position.
--
--   $1 the relay's snapshot      $2 behind this position   $3 up to this one      $4 since when
--   $5 topic, $6 key: each null for any      $7 page size
--
-- What lies in the dead letters is left to `pillarbox dead-letters`.
select
    position,
    event_id,
    event_type,
    topic,
    key,
    nullif(headers, '{}')::text as headers,
    payload,
    created_at
from pillarbox.outbox
where
    position > $2
    and position <= $3
    and pg_visible_in_snapshot(txid, $1::text::pg_snapshot)
    and created_at >= $4::text::timestamptz
    and ($5::text is null or topic = $5)
    and ($6::text is null or key = $6)
    and not exists (
        select
        from pillarbox.outbox_dead_letter as letter
        where letter.position = outbox.position and letter.state <> 'retried'
    )
order by position
limit $7
