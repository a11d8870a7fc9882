-- Records an event as handled: $1 consumer, $2 event id, $3 key, or null if the key is of no matter, $4 stream, or ''.
-- One row that says so, with what is known of failed attempts at it, this transaction, the backend, and whether earlier
-- events of the key wait among the dead letters; or none, which says nothing: recorded.sql is asked then.
--
-- That something of the key waits is seen by every process: it was committed before the server was told that the
-- event is done, and only then does the next one of the key come without it.
--
-- The row names consumer and event, so that no other statement's answer is taken for this one's.
--
-- The insert is the lock. While another transaction is handling the event, it waits for that one's end; if that
-- one commits, nothing is inserted here. The failure stays until the handler has succeeded, so that recording another
-- one never waits for this transaction.
insert into pillarbox.inbox (consumer, event_id)
values ($1, $2)
on conflict do nothing
returning
    consumer,
    event_id,
    (
        select attempts
        from pillarbox.inbox_failure
        where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) $2
    ),
    pg_catalog.pg_current_xact_id()::pg_catalog.text,
    pg_catalog.pg_backend_pid(),
    exists (
        select
        from pillarbox.inbox_dead_letter
        where
            consumer operator(pg_catalog.=) $1
            and coalesce(stream, '') operator(pg_catalog.=) $4
            and key operator(pg_catalog.=) $3
            and state operator(pg_catalog.=) 'parked'
            and reason operator(pg_catalog.=) 'waiting'
    )
