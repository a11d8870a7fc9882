-- Says that this process is there, how many outboxes it leads, whether it reaches the broker, and what is wrong with it
-- beside shipping. Answers the least that a living other leads which reaches the broker; null if there is none.
--
--   $1 relay name      $2 holder      $3 outboxes it leads      $4 the lease's length in milliseconds
--   $5 what is wrong with the process, or null      $6 whether it reaches the broker
--
-- Who has not been seen for a lease is not counted, and for ten is forgotten.
with here as (
    insert into pillarbox.relay_member (relay, holder, leads, notice, reaches_broker, seen_at)
    values ($1, $2, $3, $5, $6, clock_timestamp())
    on conflict (relay, holder) do update
    set
        leads = excluded.leads,
        notice = excluded.notice,
        reaches_broker = excluded.reaches_broker,
        seen_at = excluded.seen_at
),
gone as (
    delete from pillarbox.relay_member
    where
        relay = $1
        and holder <> $2
        and seen_at < clock_timestamp() - 10::float8 * $4::float8 * interval '1 millisecond'
)
select min(leads) as least
from pillarbox.relay_member
where
    relay = $1
    and holder <> $2
    and reaches_broker
    and seen_at > clock_timestamp() - $4::float8 * interval '1 millisecond'
