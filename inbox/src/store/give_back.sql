-- Gives back parked events that were taken and not begun, so that any process may take them: $1 consumer, $2 their
-- positions, $3 which of them may have been begun before. `due_at` shows that to the process that takes them.
update pillarbox.inbox_dead_letter
set due_at = case when position operator(pg_catalog.=) any ($3) then pg_catalog.clock_timestamp() end
where
    consumer operator(pg_catalog.=) $1
    and position operator(pg_catalog.=) any ($2)
    and state operator(pg_catalog.=) 'parked'
