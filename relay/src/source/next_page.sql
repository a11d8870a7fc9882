-- A later page of a window: what S' sees and S does not, behind the last position read.
--
--   $1 S          $2 S'          $3 the last position read          $4 page size
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
    position > $3
    and not pg_visible_in_snapshot(txid, $1::text::pg_snapshot)
    and pg_visible_in_snapshot(txid, $2::text::pg_snapshot)
order by position
limit $4
