-- Takes a piece of the consumer's rate: $1 consumer, $2 how many events.
--
-- The row's lock makes processes that ask at the same time wait for each other. Returns for how many seconds the piece
-- has not begun yet, and the rate. No row: there is no limit.
update pillarbox.inbox_rate
set
    next_at = greatest(next_at, pg_catalog.clock_timestamp())
    operator(pg_catalog.+) (
        ($2::double precision operator(pg_catalog./) per_second) operator(pg_catalog.*) interval '1 second'
    )
where consumer operator(pg_catalog.=) $1
returning
    pg_catalog.date_part('epoch', next_at operator(pg_catalog.-) pg_catalog.clock_timestamp())
    operator(pg_catalog.-) ($2::double precision operator(pg_catalog./) per_second),
    per_second
