-- A page of events to send again, in the order of position.
--
--   $1 the relay's snapshot      $2 after this position    $3 up to this one      $4 since when
--   $5 topic, $6 key: each null for any      $7 page size
--   $8 the largest row that is read whole, in bytes; rows/select.rs explains the words in braces
--   $9 the relay's name
--
-- Events that were set aside are left out; `pillarbox dead-letters` retries them.
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
