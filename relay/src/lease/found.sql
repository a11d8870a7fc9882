-- What is found in a new cluster: a snapshot, and how far the sequence of positions is. $1, the relay's name, is not
-- needed. One that was told where to restart and has given nothing out since stands behind the position before.
select
    pg_current_snapshot()::text,
    case when is_called then last_value else last_value - 1::bigint end
from pillarbox.outbox_position_seq
where $1::text is not null
