-- Parked events that may be shipped now, in order: $1 relay name, $2 whether the order is strict, $3 how many.
--
-- $4 is what one may weigh to come whole; for the words in braces see rows/select.rs. $5 are letters that are left out:
-- the relay has tried them, and waits before it does so again, or has shipped them and could not note that. They must
-- not use up the limit, or they would hide those behind them. $6 is the largest position that may be due.
--
-- With a strict order, nothing of a key is due while an earlier event of it is dead, left out, or held because the table
-- did not take its letter. Two letters may have
-- the same position, of different lives of the table: the one that was written first is the earlier.
with held as materialized (
    select outbox.key, outbox.position
    from pillarbox.relay
    cross join lateral jsonb_array_elements(relay.held) as noted
    join pillarbox.outbox on outbox.position = (noted ->> 'position'::text)::bigint
    where relay.name = $1
)
select {columns}
from (
    select *, {bytes} as bytes
    from (
        select {read}
        from pillarbox.outbox_dead_letter as letter
        where
            letter.relay = $1
            and letter.state = 'parked'
            and letter.letter <> all ($5::bigint[])
            and letter.position <= $6
            and not (
                $2
                and (
                    exists (
                        select
                        from pillarbox.outbox_dead_letter as earlier
                        where
                            earlier.relay = letter.relay
                            and earlier.state in ('dead', 'parked')
                            and (earlier.state = 'dead' or earlier.letter = any ($5::bigint[]))
                            and earlier.key = letter.key
                            and (earlier.position, earlier.letter) < (letter.position, letter.letter)
                    )
                    or exists (
                        select
                        from held
                        where held.key = letter.key and held.position < letter.position
                    )
                )
            )
        order by position, letter.letter
        limit $3
    ) as read
    offset 0
) as row
order by position, place
