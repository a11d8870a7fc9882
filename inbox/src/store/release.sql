-- Releases an event that was given up, so that it is handled again: $1 consumer, $2 identity, $3 whether the order is
-- strict.
--
-- Does nothing while an earlier event of its key is parked or, in a strict order, dead, or while an event that it was
-- parked behind is dead.
with released as (
    update pillarbox.inbox_dead_letter as letter
    set state = 'retried', resolved_at = pg_catalog.clock_timestamp()
    where
        consumer operator(pg_catalog.=) $1
        and coalesce(identity, event_id) operator(pg_catalog.=) $2
        and event_type is not null
        and state operator(pg_catalog.=) any ('{dead,parked}')
        and not exists (
            select
            from pillarbox.inbox_dead_letter as earlier
            where
                earlier.consumer operator(pg_catalog.=) letter.consumer
                and earlier.key operator(pg_catalog.=) letter.key
                and (earlier.stream operator(pg_catalog.=) letter.stream or (earlier.stream is null and letter.stream is null))
                and earlier.position operator(pg_catalog.<) letter.position
                and (
                    earlier.state operator(pg_catalog.=) 'parked'
                    or (
                        ($3 or letter.reason operator(pg_catalog.=) 'parked')
                        and earlier.state operator(pg_catalog.=) 'dead'
                    )
                )
        )
    returning position
),
unmarked as (
    delete from pillarbox.inbox
    where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) $2 and exists (select from released)
)
select exists (select from released)
