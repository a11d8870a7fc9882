-- Removes up to $2 requests that were answered more than $1 seconds ago, the oldest first. Skips rows that another
-- process is removing.
delete from pillarbox.inbox_request
where ctid operator(pg_catalog.=) any (array(
    select ctid
    from pillarbox.inbox_request
    where answered_at operator(pg_catalog.<) (
        pg_catalog.now() operator(pg_catalog.-) ($1::double precision operator(pg_catalog.*) interval '1 second')
    )
    order by answered_at
    limit $2
    for update skip locked
))
