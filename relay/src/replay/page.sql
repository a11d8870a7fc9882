-- A page of events to send again, in the order of position.
--
--   $1 the relay's snapshot      $2 behind this position   $3 up to this one      $4 since when
--   $5 topic, $6 key: each null for any      $7 page size
--   $8 what a row may weigh to come whole; for the words in braces see rows/select.rs
--   $9 the relay's name
--
-- What lies in the dead letters is left to `pillarbox dead-letters`.
select {columns}
from (
    select *, {bytes} as bytes
    from (
        select {read}
        from pillarbox.outbox
        where
            position > $2
            and position <= $3
            and :seen($1)
            and created_at >= $4::text::timestamptz
            and ($5::text is null or topic = $5)
            and ($6::text is null or key = $6)
            and not :set_aside($9)
        order by position
        limit $7
    ) as read
    offset 0
) as row
order by position
