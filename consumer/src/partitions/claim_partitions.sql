-- Tells the other processes of a consumer that this one lives, and takes its share of the partitions.
--
--   $1 consumer   $2 this process   $3 how many partitions   $4 how long a silent process counts, in milliseconds
--   $5 the partitions that this process has   $6 whether it can do its share
--
-- One row: a number of partitions that other processes run with, if it is another one (then nothing is done); the
-- size of this process's share; the partitions that it has now.
--
-- Shares differ by one at the most, the oldest process first, and add up to all partitions. What a process has
-- beyond its share it gives up by itself, when nothing of it is in progress any more. What a silent process had is
-- free, and what others have taken meanwhile is theirs. Whoever runs this holds a lock on the consumer, so nobody
-- else takes anything at the same time. It only says who is to read: that two who read at once turn nothing around
-- is the broker's part (see subscription.rs).
with alive as materialized (
    select
        pg_catalog.clock_timestamp()
        operator(pg_catalog.-) ($4::bigint::double precision operator(pg_catalog.*) interval '1 millisecond')
        as silent_since
),
others as materialized (
    select process, partitions, sharing, held
    from pillarbox.inbox_process
    where
        consumer operator(pg_catalog.=) $1
        and process operator(pg_catalog.<>) $2
        and seen_at operator(pg_catalog.>) (select silent_since from alive)
),
stranger as materialized (
    select partitions from others where partitions operator(pg_catalog.<>) $3 limit 1
),
sharers as materialized (
    select
        pg_catalog.count(*)::integer operator(pg_catalog.+) 1 as number,
        pg_catalog.count(*) filter (where process operator(pg_catalog.<) $2) as before
    from others
    where sharing
),
share as materialized (
    select
        case when $6 then
            ($3 operator(pg_catalog./) number)
            operator(pg_catalog.+) case
                when before operator(pg_catalog.<) ($3 operator(pg_catalog.%) number) then 1 else 0
            end
        else 0 end as size
    from sharers
),
kept as materialized (
    select number
    from pg_catalog.unnest($5::integer[]) as number
    where not exists (select from others where number operator(pg_catalog.=) any (others.held))
),
taken as materialized (
    select number
    from pg_catalog.generate_series(0, $3 operator(pg_catalog.-) 1) as number
    where
        number operator(pg_catalog.<>) all ($5)
        and not exists (select from others where number operator(pg_catalog.=) any (others.held))
    order by number
    limit greatest(0, (select size from share) operator(pg_catalog.-) (select pg_catalog.count(*) from kept))
),
now_held as materialized (
    select coalesce(pg_catalog.array_agg(number order by number), '{}') as held
    from (select number from kept union all select number from taken) as both_kinds
),
told as (
    insert into pillarbox.inbox_process as process (consumer, process, partitions, sharing, held)
    select $1, $2, $3, $6, held
    from now_held
    where not exists (select from stranger)
    on conflict (consumer, process) do update
    set
        partitions = excluded.partitions,
        sharing = excluded.sharing,
        held = excluded.held,
        seen_at = pg_catalog.clock_timestamp()
),
forgotten as (
    delete from pillarbox.inbox_process
    where
        consumer operator(pg_catalog.=) $1
        and process operator(pg_catalog.<>) $2
        and seen_at operator(pg_catalog.<=) (select silent_since from alive)
)
select (select partitions from stranger), share.size, now_held.held
from share, now_held
