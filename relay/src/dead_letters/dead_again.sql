-- Makes a parked letter dead again, because its event could not be stored: $1 relay name, $2 epoch, $3 letter, $4
-- reason, $5 error.
update pillarbox.outbox_dead_letter
set state = 'dead', reason = $4, error = $5, attempts = attempts + 1, dead_at = clock_timestamp()
where
    relay = $1
    and letter = $3
    and state = 'parked'
    and exists (select from pillarbox.relay where name = $1 and epoch = $2)
