-- Removes a batch of rows that every relay of this outbox shipped longer ago than the retention: the oldest ones after
-- a position.
--
--   $1 the position      $2 retention in seconds      $3 rows to look at
--
-- What the newest checkpoint of that age sees was shipped that long ago. A relay without such a checkpoint counts as
-- having shipped nothing. So a row is kept for its retention after it was shipped, however long it had waited, and a
-- relay that goes back to a checkpoint finds every row after it. A statement looks at a limited number of rows, so it
-- takes a bounded time whatever it finds. It never waits for a writer, and writers never wait for it, because nobody
-- else changes a committed row.
--
-- A row that appeared at a position that the cursor had passed is shipped by a sweep. So the marks that sweeps compare
-- with must also see a row before it is removed; what they do not see, a sweep has not looked at yet. A cursor or
-- checkpoint of another cluster says nothing about rows here. Where the rules may be wrong, a row is kept.
with here as materialized (
    select system_identifier::text as system_identifier, 'pillarbox.outbox'::regclass::oid::bigint as relation
    from pg_control_system()
),
horizon as materialized (
    select
        case
            -- A relay that has not run for that long reached its cursor before that.
            when relay.heartbeat < clock_timestamp() - $2::bigint::float8 * interval '1 second'
                then (
                    select (relay.cursor ->> 'snapshot'::text)::pg_snapshot
                    from here
                    where
                        here.system_identifier = relay.cursor ->> 'system_identifier'::text
                        and here.relation = (relay.cursor #>> '{table,relation}'::text[])::bigint
                )
            else (
                select (checkpoint.cursor ->> 'snapshot'::text)::pg_snapshot
                from pillarbox.relay_checkpoint as checkpoint
                join here
                    on here.system_identifier = checkpoint.cursor ->> 'system_identifier'::text
                    and here.relation = (checkpoint.cursor #>> '{table,relation}'::text[])::bigint
                where
                    checkpoint.relay = relay.name
                    and checkpoint.taken_at < clock_timestamp() - $2::bigint::float8 * interval '1 second'
                order by checkpoint.taken_at desc
                limit 1
            )
        end as snapshot,
        9223372036854775807 as upto
    from pillarbox.relay
    union all
    select (mark ->> 'snapshot'::text)::pg_snapshot, (mark ->> 'floor'::text)::bigint
    from pillarbox.relay
    cross join lateral jsonb_array_elements(relay.cursor -> 'marks'::text) as mark
),
held as materialized (
    select (noted ->> 'position'::text)::bigint as position
    from pillarbox.relay
    cross join lateral jsonb_array_elements(relay.held) as noted
),
oldest as (
    select position, txid, xmin
    from pillarbox.outbox
    where position > $1
    order by position
    limit $3
),
shipped as (
    select outbox.position
    from oldest as outbox
    where not exists (
        select
        from horizon
        where horizon.upto >= outbox.position and (horizon.snapshot is null or not :surely_seen(horizon.snapshot))
    )
    -- An event whose letter the table did not take: this is all there is of it.
    and not exists (select from held where held.position = outbox.position)
    -- The letter holds only a part of its event. The rest is in this row.
    and not exists (
        select
        from pillarbox.outbox_dead_letter as letter
        where letter.position = outbox.position and not letter.whole and letter.state in ('dead', 'parked')
    )
),
removed as (
    delete from pillarbox.outbox
    using shipped
    where outbox.position = shipped.position
    returning outbox.position
)
select
    (select count(*) from removed) as removed,
    (select count(*) from oldest) as looked_at,
    (select max(position) from oldest) as last
