-- What a replay goes through: $1 relay name, $2 since when, as text, or null.
--
-- The snapshot is what the relay had shipped by now; the rest is the relay's to ship. `since` is a time, or a
-- number of seconds, minutes, hours or days ago as in 90s, 15m, 2h, 1d.
select
    relay.cursor ->> 'snapshot'::text as snapshot,
    (select max(position) from pillarbox.outbox) as last,
    case
        when $2::text is null then '-infinity'::timestamptz
        when $2::text ~ '^[0-9]+[smhd]$' then clock_timestamp() - $2::text::interval
        else $2::text::timestamptz
    end::text as since
from pillarbox.relay
where relay.name = $1
