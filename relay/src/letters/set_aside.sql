-- Moves the cursor behind an event that can never be stored, and sets a copy of the event aside, in one
-- statement: both or neither, and neither unless this leader still holds the lease.
--
--   $1 relay name   $2 epoch   $3 cursor   $4 position   $5 reason   $6 error   $7 attempts
with moved as (
    update pillarbox.relay
    set cursor = $3::text::jsonb
    where name = $1 and epoch = $2
    returning name
),
kept as (
    insert into pillarbox.outbox_dead_letter
        (position, relay, event_id, event_type, topic, key, headers, payload, created_at, reason, error, attempts)
    select
        position, moved.name, event_id, event_type, topic, key, headers, payload, created_at, $5, $6, $7
    from pillarbox.outbox
    cross join moved
    where position = $4
    on conflict (position) do nothing
)
select count(*) from moved
