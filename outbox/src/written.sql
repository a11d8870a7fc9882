-- The events that this transaction has written, those for the outbox first, each in the order in which they leave.
--
-- A row of the outbox says which transaction wrote it. A scheduled row does not, so its xmin tells: this transaction's id
-- or, after a savepoint, a later one. An id that is in progress and whose row can be seen is this transaction's own.
-- (Ids that are lower than this transaction's are not asked about: an id from before the last wrap would be in the
-- future, which is an error.)
with own as (
    select pg_catalog.pg_current_xact_id_if_assigned()::pg_catalog.text::bigint as id
)
select
    false as scheduled, outbox.position as place, outbox.event_id::pg_catalog.text as id, outbox.event_type,
    outbox.topic, outbox.key, outbox.headers::pg_catalog.text as headers, outbox.payload, null::double precision as due
from pillarbox.outbox
where outbox.txid operator(pg_catalog.=) pg_catalog.pg_current_xact_id_if_assigned()
union all
select
    true, 0, later.event_id::pg_catalog.text,
    later.event_type, later.topic, later.key, later.headers::pg_catalog.text, later.payload,
    extract(epoch from later.due_at)::double precision
from pillarbox.outbox_scheduled as later, own
where
    case
        when later.xmin::pg_catalog.text::bigint
            operator(pg_catalog.>=) (own.id operator(pg_catalog.&) 4294967295::bigint)
        then pg_catalog.pg_xact_status(
            (
                (own.id operator(pg_catalog.-) (own.id operator(pg_catalog.&) 4294967295::bigint))
                    operator(pg_catalog.+) later.xmin::pg_catalog.text::bigint
            )::pg_catalog.text::pg_catalog.xid8
        ) operator(pg_catalog.=) 'in progress'
        else false
    end
order by 1, 2, 9
