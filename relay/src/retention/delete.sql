-- Removes a batch of rows that every relay of this outbox shipped long enough ago: the oldest ones behind a
-- position.
--
--   $1 the position      $2 retention in seconds      $3 rows to look at
--
-- Shipped that long ago is what the newest checkpoint of that age sees; a relay without one has shipped
-- nothing yet. So a row is kept for its retention after it was shipped, however long it had waited, and a relay
-- that goes back to a checkpoint finds every row after it. Only so many rows are looked at, so that a statement
-- takes a bounded time whatever it finds. A writer is never waited for, and never waits: nobody else touches a
-- row that has been committed.
--
-- A row that came to a position behind the cursor is shipped by a sweep. So a row must also be seen by the marks that
-- sweeps compare with: what they do not see, a sweep has not looked at yet. A cursor or checkpoint of another cluster
-- says nothing of what is here. Where the rules may be mistaken, a row is kept.
with here as materialized (
    select system_identifier::text as system_identifier from pg_control_system()
),
horizon as materialized (
    select
        case
            -- A relay that has not run for so long reached its cursor before that.
            when relay.heartbeat < clock_timestamp() - $2::bigint::float8 * interval '1 second'
                then (
                    select (relay.cursor ->> 'snapshot'::text)::pg_snapshot
                    from here
                    where here.system_identifier = relay.cursor ->> 'system_identifier'::text
                )
            else (
                select (checkpoint.cursor ->> 'snapshot'::text)::pg_snapshot
                from pillarbox.relay_checkpoint as checkpoint
                join here on here.system_identifier = checkpoint.cursor ->> 'system_identifier'::text
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
    -- A letter that holds only a part of its event: the rest is here.
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
