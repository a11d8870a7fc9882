-- Takes parked events that may be handled now: $1 consumer, $2 whether the order is strict, $3 for how many
-- milliseconds, $4 how many, $5 of which stream.
--
-- Those of other streams are for the consumers that read these. What came from no stream is for any.
--
-- Of each key the first one only, so that its order holds whoever takes them; with a strict order none while an
-- earlier one is dead. Nobody else takes them before `due_at`; a process that dies leaves them until then.
update pillarbox.inbox_dead_letter as letter
set due_at =
    pg_catalog.clock_timestamp()
    operator(pg_catalog.+) ($3::bigint::double precision operator(pg_catalog.*) interval '1 millisecond')
from (
    select position
    from pillarbox.inbox_dead_letter as first
    where
        consumer operator(pg_catalog.=) $1
        and state operator(pg_catalog.=) 'parked'
        and ($5::pg_catalog.text is null or stream is null or stream operator(pg_catalog.=) $5)
        and (due_at is null or due_at operator(pg_catalog.<=) pg_catalog.clock_timestamp())
        and not exists (
            select
            from pillarbox.inbox_dead_letter as earlier
            where
                earlier.consumer operator(pg_catalog.=) first.consumer
                and earlier.key operator(pg_catalog.=) first.key
                and (earlier.stream operator(pg_catalog.=) first.stream or (earlier.stream is null and first.stream is null))
                and earlier.position operator(pg_catalog.<) first.position
                and (earlier.state operator(pg_catalog.=) 'parked' or ($2 and earlier.state operator(pg_catalog.=) 'dead'))
        )
    order by position
    limit $4
    for update skip locked
) as taken
where letter.position operator(pg_catalog.=) taken.position
returning letter.*
