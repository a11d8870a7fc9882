-- What has not been shipped, as of the saved cursor of one relay: $1 its name.
--
-- The same rows that the relay would read next; see cursor.rs. `started` is false for a relay that has never
-- run: then everything is backlog. So it is if the cursor is of another table, which was the outbox before.
--
-- As there, a transaction in flight lowers the start only once it has finished: before, none of its rows can be
-- seen, and whatever was shipped and removed since it began would be walked through at each count.
--
-- The cursor's parts are asked for in subqueries of their own, which are run once; joined, the one row of `relay`
-- would be scanned again for each row of the outbox.
with saved as (
    select
        holder,
        epoch,
        held,
        expires_at > clock_timestamp() as alive,
        extract(epoch from clock_timestamp() - heartbeat)::float8 as heartbeat_age,
        cursor,
        -- What of it tells of this table. One that has read no row yet is of no table.
        case
            when (cursor #>> '{table,relation}'::text[])::bigint <> 'pillarbox.outbox'::regclass::oid::bigint then null
            else cursor
        end as of_here
    from pillarbox.relay
    where name = $1
),
relay as (
    select
        holder,
        epoch,
        held,
        alive,
        heartbeat_age,
        cursor,
        of_here,
        (of_here ->> 'snapshot'::text)::pg_snapshot as snapshot,
        (of_here ->> 'floor'::text)::bigint as floor,
        (of_here #>> '{window,snapshot}'::text[])::pg_snapshot as window_snapshot,
        (of_here #>> '{window,position}'::text[])::bigint as window_position,
        (of_here #>> '{before,found}'::text[])::pg_snapshot as found,
        array(
            select shipped ->> 0 from jsonb_array_elements(of_here #> '{before,shipped}'::text[]) as shipped
        ) as snapshots,
        array(
            select (shipped ->> 1)::bigint
            from jsonb_array_elements(of_here #> '{before,shipped}'::text[]) as shipped
        ) as positions
    from saved
),
start as (
    select
        least(
            relay.floor,
            min(in_flight.low::bigint)
                filter (where pg_visible_in_snapshot(in_flight.xid::xid8, pg_current_snapshot()))
        ) as position
    from relay
    left join lateral jsonb_each_text(relay.of_here -> 'in_flight'::text) as in_flight (xid, low) on true
    group by relay.floor
),
backlog as (
    select
        count(*) as events,
        extract(epoch from clock_timestamp() - min(outbox.created_at) filter (where isfinite(outbox.created_at)))::float8 as oldest_age
    from pillarbox.outbox
    where
        outbox.position > coalesce((select start.position from start), 0)
        and (
            (select relay.snapshot from relay) is null
            or (
                not :seen((select relay.snapshot from relay))
                and (
                    (select relay.window_snapshot from relay) is null
                    or outbox.position > (select relay.window_position from relay)
                    or not :seen((select relay.window_snapshot from relay))
                )
                and not :covered(
                    (select relay.found from relay),
                    (select relay.snapshots from relay),
                    (select relay.positions from relay)
                )
            )
        )
)
select
    backlog.events,
    backlog.oldest_age,
    relay.epoch is not null as started,
    relay.holder,
    relay.epoch,
    relay.alive,
    relay.heartbeat_age,
    relay.cursor::text as cursor,
    (select count(*) from pillarbox.outbox_dead_letter where state in ('dead', 'parked')) as dead_letters,
    coalesce(jsonb_array_length(relay.held), 0)::bigint as held_events,
    -- The table that was the outbox before another one took its name, as long as it is there.
    (
        select pg_class.oid::regclass::text
        from pg_class
        where pg_class.oid = (relay.cursor ->> 'left_table'::text)::bigint::oid
    ) as left_table,
    -- Streams that acknowledged events and that the broker's API did not show at the newest checkpoint.
    array(
        select mark.name
        from
            (
                select relay_checkpoint.streams
                from pillarbox.relay_checkpoint
                where relay_checkpoint.relay = $1
                order by relay_checkpoint.taken_at desc
                limit 1
            ) as newest,
            lateral jsonb_each(newest.streams) as mark (name, stood)
        where not (mark.stood ->> 'shown')::boolean
        order by mark.name
    ) as unwatched_streams,
    -- What processes that live say is wrong with them. They say it anew with each third of the lease.
    (
        select
            coalesce(
                jsonb_agg(
                    jsonb_build_object('holder'::text, member.holder, 'notice'::text, member.notice)
                    order by member.holder
                ),
                '[]'
            )::text
        from pillarbox.relay_member as member
        where
            member.relay = $1
            and member.notice is not null
            and (
                member.seen_at > clock_timestamp() - interval '1 minute'
                or (relay.alive and member.holder = relay.holder)
            )
    ) as notices
from backlog
left join relay on true
