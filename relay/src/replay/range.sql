-- The range of a replay: $1 relay name, $2 since when, as text, or null.
--
-- The snapshot shows what the relay has shipped by now. The relay itself ships the rest. `since` is a time, or an age
-- in seconds, minutes, hours or days such as 90s, 15m, 2h, 1d.
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
