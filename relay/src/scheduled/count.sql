-- What release_scheduled counts, for a role that reads the table and may not run the function.
select
    count(*) as pending,
    count(error) as held,
    extract(epoch from clock_timestamp() - min(due_at) filter (where due_at <= clock_timestamp()))::float8 as overdue
from pillarbox.outbox_scheduled
