-- A shop after a bad deploy.
insert into pillarbox.outbox (event_type, topic, key, payload)
select 'order.placed', 'orders.placed', 'order-' || i, '1' from generate_series(1, 1234) i;
insert into pillarbox.outbox_scheduled (due_at, event_type, topic, payload)
select now() + i * interval '17 minutes', 'payment.overdue', 'payments.overdue', '1' from generate_series(1, 12) i;
insert into pillarbox.outbox_scheduled (due_at, event_type, topic, payload, error, tried_at)
values (now() - interval '2 hours', 'invoice.reminder', 'invoices.reminder', '1',
    '23514: new row for relation "outbox" violates check constraint "only_orders"', now());
insert into pillarbox.inbox (consumer, event_id) values ('payments', 'a'), ('ledger', 'a'), ('notifications', 'a');
insert into pillarbox.inbox_failure (consumer, event_id, source, attempts, outages, last_error, first_failed_at, last_failed_at)
values
    ('notifications', '019ac2f0-5d3e-7c11-9a7b-3f1de0a4c001', '/shop', 2, 0,
     'the mail server answered 451: greylisted, try again later', now() - interval '9 minutes', now() - interval '40 seconds'),
    ('payments', '019ac2f0-5d3e-7c11-9a7b-3f1de0a4c002', '/shop', 0, 7,
     'the card provider is away: 503 Service Unavailable', now() - interval '31 minutes', now() - interval '12 seconds');
insert into pillarbox.saga (saga, id, state, step, status, version, started_at, updated_at, deadline_at, timers, compensations)
values ('trip', 'trip-17', '{"hotel": "booked"}', 'car', 'running', 3, now() - interval '3 hours', now() - interval '1 hour',
        now() - interval '20 minutes', '[]', '[{"type": "hotel.cancel"}]'),
       ('trip', 'trip-18', '{}', 'hotel', 'running', 1, now() - interval '4 minutes', now(), now() + interval '1 hour', '[]', '[]');
insert into pillarbox.saga_history (saga, id, seq, at, event_id, event_type, step_before, step_after, status, published, timers_set, timers_cancelled, note)
values
    ('trip', 'trip-17', 1, now() - interval '3 hours', '019ac2f0-0001', 'trip.booked', 'start', 'hotel', 'running',
     '[{"id": "1", "type": "hotel.book"}]', '[{"name": "hotel", "due_at": "2026-11-28T02:00:00Z"}]', '[]', null),
    ('trip', 'trip-17', 2, now() - interval '1 hour', '019ac2f0-0002', 'hotel.booked', 'hotel', 'car', 'running',
     '[{"id": "2", "type": "car.book"}]', '[]', '[{"name": "hotel"}]', 'room 12');
