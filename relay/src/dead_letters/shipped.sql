-- Marks parked events as shipped: $1 relay name, $2 epoch, $3 letters.
update pillarbox.outbox_dead_letter
set state = 'retried', resolved_at = clock_timestamp()
where
    relay = $1
    and letter = any ($3)
    and state = 'parked'
    and exists (select from pillarbox.relay where name = $1 and epoch = $2)
