-- Reports this process: how many outboxes it leads, whether it reaches the broker, and what else is wrong with it.
-- Returns the fewest outboxes that any other living process leads that reaches the broker; null if there is none.
--
--   $1 relay name      $2 holder      $3 outboxes it leads      $4 the lease's length in milliseconds
--   $5 what is wrong with the process, or null      $6 whether it reaches the broker
--
-- A process that has not reported for the length of a lease does not count. After ten lengths it is removed.
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
