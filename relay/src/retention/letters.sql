-- Removes dead letters that were resolved longer ago than the retention: $1 relay name, $2 retention in seconds.
--
-- A letter stays while the outbox still has the event. A relay that goes back reads the event again, and must find what
-- became of it.
delete from pillarbox.outbox_dead_letter
where
    letter = any (
        array(
            select letter.letter
            from pillarbox.outbox_dead_letter as letter
            where
                letter.relay = $1
                and letter.state in ('retried', 'discarded')
                and coalesce(letter.resolved_at, letter.dead_at) < clock_timestamp() - $2::float8 * interval '1 second'
                and not exists (select from pillarbox.outbox where outbox.position = letter.position)
            limit 500
            for update skip locked
        )
    )
