-- Records an event as handled: $1 consumer, $2 event id, $3 key, or null if the key does not matter, $4 stream, or ''.
-- Returns one row if it is recorded, with what is known of failed attempts, this transaction's id, the backend, and
-- whether earlier events of the key wait among the dead letters. No row says nothing; recorded.sql is asked then.
--
-- Every process sees that events of the key wait. That was committed before the server was told that the event is done,
-- and the server delivers the next event of the key only after that.
--
-- The row names consumer and event, so that the answer to another statement is not taken for this one's.
--
-- The insert is the lock. While another transaction handles the event, this one waits for its end; if it commits,
-- nothing is inserted here. What is known of failures stays until the handler has succeeded, so that recording another
-- failure never waits for this transaction.
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
