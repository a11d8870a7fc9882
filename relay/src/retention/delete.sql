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
with horizon as materialized (
    select case
        -- A relay that has not run for so long reached its cursor before that.
        when relay.heartbeat < clock_timestamp() - $2::float8 * interval '1 second'
            then (relay.cursor ->> 'snapshot'::text)::pg_snapshot
        else (
            select (checkpoint.cursor ->> 'snapshot'::text)::pg_snapshot
            from pillarbox.relay_checkpoint as checkpoint
            where
                checkpoint.relay = relay.name
                and checkpoint.taken_at < clock_timestamp() - $2::float8 * interval '1 second'
            order by checkpoint.taken_at desc
            limit 1
        )
    end as snapshot
    from pillarbox.relay
),
oldest as (
    select position, txid
    from pillarbox.outbox
    where position > $1
    order by position
    limit $3
),
shipped as (
    select oldest.position
    from oldest
    where not exists (
        select
        from horizon
        where snapshot is null or not pg_visible_in_snapshot(oldest.txid, snapshot)
    )
    -- A letter that holds only a part of its event: the rest is here.
    and not exists (
        select
        from pillarbox.outbox_dead_letter as letter
        where letter.position = oldest.position and not letter.whole and letter.state in ('dead', 'parked')
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
