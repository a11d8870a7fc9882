-- Saves a checkpoint, unless this leader has lost the lease, and removes those that are no longer needed: all that are
-- older than the newest one past the retention.
--
--   $1 relay name      $2 epoch      $3 cursor      $4 streams      $5 retention in seconds
with taken as (
    insert into pillarbox.relay_checkpoint (relay, cursor, streams)
    select name, $3::text::jsonb, $4::text::jsonb
    from pillarbox.relay
    where name = $1 and epoch = $2
    returning relay
),
forgotten as (
    delete from pillarbox.relay_checkpoint
    where
        relay = $1
        and taken_at < (
            select max(taken_at)
            from pillarbox.relay_checkpoint
            where relay = $1 and taken_at < clock_timestamp() - $5::float8 * interval '1 second'
        )
)
select count(*) from taken
