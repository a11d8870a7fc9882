-- The trips, with what their histories say.
select
    saga.id::bigint as trip,
    saga.status,
    saga.failure,
    (saga.state ->> 'cents')::bigint as cents,
    array(select jsonb_array_elements_text(saga.state -> 'asked')) as asked,
    array(
        -- A compensation is a command to a provider, which the outbox still has.
        select split_part(event.topic, '.', 2)
        from pillarbox.saga_history as entry
        cross join lateral jsonb_array_elements(entry.published) with ordinality as published (event, place)
        join pillarbox.outbox as event on event.event_id = (published.event ->> 'id')::uuid
        where entry.saga = saga.saga and entry.id = saga.id and event.event_type = 'provider.cancel'
        order by entry.seq, published.place
    ) as cancels,
    array(
        select entry.event_id
        from pillarbox.saga_history as entry
        where entry.saga = saga.saga and entry.id = saga.id and coalesce(entry.note, '') not like 'ignored:%'
    ) as handled,
    (
        select count(*)
        from pillarbox.saga_history as entry
        where
            entry.saga = saga.saga
            and entry.id = saga.id
            and entry.event_type = 'trip.requested'
            and entry.note like 'ignored:%'
    ) as requested_again,
    (
        select count(*)
        from pillarbox.saga_history as entry
        where
            entry.saga = saga.saga
            and entry.id = saga.id
            and entry.event_type = 'provider.booked'
            and entry.status in ('compensating', 'failed')
    ) as late
from pillarbox.saga
where saga.saga = 'trip'
order by 1
