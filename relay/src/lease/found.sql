-- What is found in a new cluster: a snapshot, and how far the sequence of positions is. $1, the relay's name, is not
-- needed.
select
    pg_current_snapshot()::text,
    case when is_called then last_value else 0 end
from pillarbox.outbox_position_seq
where $1::text is not null
