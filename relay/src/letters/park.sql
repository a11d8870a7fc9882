-- Parks events behind the dead one of their key, unless this leader has lost the lease.
--
--   $1 relay name      $2 epoch      $3 positions
--
-- The cursor passes them later. If this leader ends before, its successor reads them again and finds them
-- parked.
with held as (
    select name
    from pillarbox.relay
    where name = $1 and epoch = $2
    for share
),
parked as (
    insert into pillarbox.outbox_dead_letter
        (position, relay, event_id, event_type, topic, key, headers, payload, created_at, reason, error, attempts, state)
    select
        position, held.name, event_id, event_type, topic, key, headers, payload, created_at,
        'parked', 'an earlier event of its key is a dead letter', 0, 'parked'
    from pillarbox.outbox
    cross join held
    where position = any($3)
    on conflict (position) do nothing
)
select count(*) from held
