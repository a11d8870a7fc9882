-- Starts in a new cluster: $1 relay name, $2 epoch, $3 the cursor that Cursor::moved_to makes.
--
-- The checkpoints contain transaction ids of the old cluster, so they are deleted. A relay that must go back then goes
-- back to the start.
with moved as (
    update pillarbox.relay
    set cursor = $3::text::jsonb
    where name = $1 and epoch = $2
    returning name
),
forgotten as (
    delete from pillarbox.relay_checkpoint
    using moved
    where relay = moved.name
)
select count(*) from moved
