-- Unresolved dead letters by relay or consumer. At most $1 are looked at, so that the answer does not take longer the
-- more there are. The braces stand for the column with the name, and the table.
select owner, count(*) filter (where state = 'dead'), count(*) filter (where state = 'parked')
from (
    select {owner} as owner, state
    from pillarbox.{table}
    where state in ('dead', 'parked')
    limit $1
) as counted
group by owner
order by owner
