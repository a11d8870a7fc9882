-- Takes parked events that may be handled now: $1 consumer, $2 whether the order is strict, $3 for how many
-- milliseconds, $4 how many, $5 of which stream.
--
-- Those of other streams are for the consumers that read these. What came from no stream is for any.
--
-- Of each key the first one only, so that its order holds whoever takes them; with a strict order none while an
-- earlier one is dead. Nobody else takes them before `due_at`; a process that dies leaves them until then.
update pillarbox.inbox_dead_letter as letter
set due_at = clock_timestamp() + ($3::bigint::float8 operator(pg_catalog.*) interval '1 millisecond')
from (
    select position
    from pillarbox.inbox_dead_letter as first
    where
        consumer = $1
        and state = 'parked'
        and ($5::text is null or stream is null or stream = $5)
        and (due_at is null or due_at <= clock_timestamp())
        and not exists (
            select
            from pillarbox.inbox_dead_letter as earlier
            where
                earlier.consumer = first.consumer
                and earlier.key = first.key
                and earlier.stream is not distinct from first.stream
                and earlier.position < first.position
                and (earlier.state = 'parked' or ($2 and earlier.state = 'dead'))
        )
    order by position
    limit $4
    for update skip locked
) as taken
where letter.position = taken.position
returning letter.*
