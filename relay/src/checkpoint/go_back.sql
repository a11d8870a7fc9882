-- Moves the cursor back, and removes the checkpoints after it, whose messages are lost.
--
--   $1 relay name      $2 epoch      $3 cursor      $4 when the checkpoint was taken; null for the start of the outbox
with moved as (
    update pillarbox.relay
    set cursor = $3::text::jsonb
    where name = $1 and epoch = $2
    returning name
),
forgotten as (
    delete from pillarbox.relay_checkpoint
    using moved
    where relay = moved.name and ($4::text is null or taken_at > $4::text::timestamptz)
)
select count(*) from moved
