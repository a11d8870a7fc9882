-- The newest actions, the newest first: $1 what, or the beginning of it, $2 who, $3 at most this old, in seconds,
-- $4 a dead letter: each null for any; $5 at most so many.
--
-- Rows of one run are one action. The rows of a run are close together, so they are counted among the newest rows only.
select
    to_char(max(at) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as at,
    extract(epoch from clock_timestamp() - max(at))::float8 as age,
    role,
    who,
    what,
    target,
    sum(count)::bigint as count,
    note
from (
    select id, at, role, who, what, target, count, note, run
    from pillarbox.operator_action
    where
        ($1::text is null or what = $1 or starts_with(what, $1 || '.'))
        and ($2::text is null or who = $2 or role = $2)
        and ($3::bigint is null or at >= clock_timestamp() - $3::float8 * interval '1 second')
        and ($4::bigint is null or letters @> array[$4])
    order by id desc
    limit 50000
) as newest
group by run, role, who, what, target, note
order by max(id) desc
limit $5
