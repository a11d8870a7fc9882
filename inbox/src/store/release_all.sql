-- Releases parked events, so that they are handled again in one transaction: $1 consumer, $2 identities, $3 whether the
-- order is strict. Returns a row for each event that is released.
--
-- As in release.sql, an event is not released while an earlier event of its key is parked or, in a strict order, dead, or
-- while an event that it was parked behind is dead. An earlier event that is released by this statement holds nobody up.
-- Once an event of a key is not released, no later one of that key is.
--
-- The letters are locked in their order, so that two processes wait for each other and do not deadlock.
with letter as materialized (
    select position, coalesce(stream, '') as stream, key, reason, coalesce(identity, event_id) as event_id
    from pillarbox.inbox_dead_letter
    where
        consumer operator(pg_catalog.=) $1
        and coalesce(identity, event_id) operator(pg_catalog.=) any ($2::pg_catalog.text[])
        and event_type is not null
        and state operator(pg_catalog.=) 'parked'
    order by position
    for update
),
keyed as (
    select stream, key, pg_catalog.max(position) as latest, pg_catalog.array_agg(position) as positions
    from letter
    where key is not null
    group by stream, key
),
-- From which position on the events of a key must wait.
waiting as (
    select
        keyed.stream,
        keyed.key,
        least(
            (
                select pg_catalog.min(earlier.position)
                from pillarbox.inbox_dead_letter as earlier
                where
                    earlier.consumer operator(pg_catalog.=) $1
                    and coalesce(earlier.stream, '') operator(pg_catalog.=) keyed.stream
                    and earlier.key operator(pg_catalog.=) keyed.key
                    and earlier.position operator(pg_catalog.<) keyed.latest
                    and earlier.state operator(pg_catalog.=) 'parked'
                    and earlier.position operator(pg_catalog.<>) all (keyed.positions)
            ),
            (
                select pg_catalog.min(letter.position)
                from letter
                where
                    letter.stream operator(pg_catalog.=) keyed.stream
                    and letter.key operator(pg_catalog.=) keyed.key
                    and ($3 or letter.reason operator(pg_catalog.=) 'parked')
                    and letter.position operator(pg_catalog.>) (
                        select pg_catalog.min(earlier.position)
                        from pillarbox.inbox_dead_letter as earlier
                        where
                            earlier.consumer operator(pg_catalog.=) $1
                            and coalesce(earlier.stream, '') operator(pg_catalog.=) keyed.stream
                            and earlier.key operator(pg_catalog.=) keyed.key
                            and earlier.state operator(pg_catalog.=) 'dead'
                    )
            )
        ) as since
    from keyed
),
released as (
    update pillarbox.inbox_dead_letter as released
    set state = 'retried', resolved_at = pg_catalog.clock_timestamp()
    from letter
    where
        released.position operator(pg_catalog.=) letter.position
        and not exists (
            select
            from waiting
            where
                waiting.stream operator(pg_catalog.=) letter.stream
                and waiting.key operator(pg_catalog.=) letter.key
                and waiting.since operator(pg_catalog.<=) letter.position
        )
    returning letter.event_id
),
unmarked as (
    delete from pillarbox.inbox
    using released
    where inbox.consumer operator(pg_catalog.=) $1 and inbox.event_id operator(pg_catalog.=) released.event_id
)
select event_id from released
