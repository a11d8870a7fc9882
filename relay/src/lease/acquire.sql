-- Takes the lease of a relay name if nobody holds it or it has expired, and reads the cursor.
--
--   $1 relay name      $2 holder      $3 the lease's length in milliseconds
--   $4 the cursor of a relay that has never run
--
-- The epoch grows each time, also for the same holder, so that statements of an earlier leader that are still under way
-- change nothing. All times are the database's.
insert into pillarbox.relay as relay (name, cursor, holder, epoch, expires_at, heartbeat)
values (
    $1,
    $4::text::jsonb,
    $2,
    1,
    clock_timestamp() + $3::float8 * interval '1 millisecond',
    clock_timestamp()
)
on conflict (name) do update
set
    holder = excluded.holder,
    epoch = relay.epoch + 1,
    expires_at = excluded.expires_at,
    heartbeat = excluded.heartbeat
where
    relay.holder is null
    or relay.holder = excluded.holder
    or relay.expires_at is null
    or relay.expires_at < clock_timestamp()
returning relay.epoch, relay.cursor::text
