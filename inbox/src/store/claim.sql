-- Records an event as handled: $1 consumer, $2 event id. One row that says so, with what is known of failed attempts
-- at it, this transaction, and the backend; or none, which says nothing: recorded.sql is asked then.
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
    pg_catalog.pg_backend_pid()
