-- Which of these events are recorded as handled: $1 consumer, $2 identities. Returns a row for each recorded event, with
-- whether a failure of it is still known, which a process that noticed late may have left.
--
-- It is asked outside of any transaction, so that many events that come again are skipped by one statement. A row that it
-- sees is committed, and stands for an event that was handled, given up or parked: all of them leave the stream. An event
-- that another transaction handles at this moment has no row yet, and goes the usual way. The row names consumer and
-- event, so that the answer to another statement is not taken for this one's.
select
    consumer,
    event_id,
    exists (
        select
        from pillarbox.inbox_failure as failure
        where
            failure.consumer operator(pg_catalog.=) $1
            and failure.event_id operator(pg_catalog.=) inbox.event_id
    )
from pillarbox.inbox
where consumer operator(pg_catalog.=) $1 and event_id operator(pg_catalog.=) any ($2::pg_catalog.text[])
