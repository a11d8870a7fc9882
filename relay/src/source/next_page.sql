-- A later page of a window: what S' sees and S does not, behind the last position read.
--
--   $1 S          $2 S'          $3 the last position read          $4 page size
--   $5 what a row may weigh to come whole; for the words in braces see rows/select.rs
select {columns}
from (
    select *, {bytes} as bytes
    from (
        select {read}
        from pillarbox.outbox
        where
            position > $3
            and not pg_visible_in_snapshot(txid, $1::text::pg_snapshot)
            and pg_visible_in_snapshot(txid, $2::text::pg_snapshot)
        order by position
        limit $4
    ) as read
    offset 0
) as row
order by position
