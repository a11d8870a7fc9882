-- The newest messages of the trail that belong to a flow: by id, by key, by what they share, and by their cause.
select
    event_id, identity, source, event_type, topic, key, correlation_id, causation_id, event_time, stream, stream_life,
    sequence, stored_at, size
from (
    (select * from pillarbox.trail where event_id = any ($1) order by stored_at desc limit $5)
    union all
    (select * from pillarbox.trail where key = any ($2) order by stored_at desc limit $5)
    union all
    (select * from pillarbox.trail where correlation_id = any ($3) order by stored_at desc limit $5)
    union all
    (select * from pillarbox.trail where causation_id = any ($4) order by stored_at desc limit $5)
) as found
where event_id is not null and event_type is not null
