-- Removes a batch of rows that every relay of this outbox has shipped and that are old enough: the oldest ones
-- behind a position.
--
--   $1 the position      $2 retention in seconds      $3 rows to look at
--
-- Shipped is what a saved snapshot sees; a window under way does not count yet. Only so many rows are looked at,
-- so that a statement takes a bounded time whatever it finds. A writer is never waited for, and never waits:
-- nobody else touches a row that has been committed.
with oldest as (
    select position, txid, created_at
    from pillarbox.outbox
    where position > $1
    order by position
    limit $3
),
shipped as (
    select oldest.position
    from oldest
    where
        oldest.created_at < clock_timestamp() - $2 * interval '1 second'
        and not exists (
            select
            from pillarbox.relay
            where not pg_visible_in_snapshot(oldest.txid, (relay.cursor ->> 'snapshot')::pg_snapshot)
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
