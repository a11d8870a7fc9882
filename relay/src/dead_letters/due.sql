-- Parked events that may be shipped now, in order: $1 relay name, $2 whether the order is strict, $3 how many.
--
-- $4 is what one may weigh to come whole; for the words in braces see rows/select.rs.
--
-- With a strict order, nothing of a key is due while an earlier event of it is dead. Two letters may have the same
-- position, of different lives of the table: the one that was written first is the earlier.
select {columns}
from (
    select *, {bytes} as bytes
    from (
        select {read}
        from pillarbox.outbox_dead_letter as letter
        where
            letter.relay = $1
            and letter.state = 'parked'
            and not (
                $2
                and exists (
                    select
                    from pillarbox.outbox_dead_letter as earlier
                    where
                        earlier.relay = letter.relay
                        and earlier.state = 'dead'
                        and earlier.key = letter.key
                        and (earlier.position, earlier.letter) < (letter.position, letter.letter)
                )
            )
        order by position, letter.letter
        limit $3
    ) as read
    offset 0
) as row
order by position, place
