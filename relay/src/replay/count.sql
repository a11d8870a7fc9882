-- How many events a replay would send: the same rows as page.sql.
--
--   $1 the relay's snapshot      $2 after this position    $3 up to this one      $4 since when
--   $5 topic, $6 key: each null for any      $7 the relay's name
select count(*), min(position), max(position)
from pillarbox.outbox
where
    position > $2
    and position <= $3
    and :seen($1)
    and created_at >= $4::text::timestamptz
    and ($5::text is null or topic = $5)
    and ($6::text is null or key = $6)
    and not :set_aside($7)
