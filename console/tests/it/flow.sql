-- One order through three services: a payment that was repeated, a reservation that is in retry, a mail that was given up.
insert into pillarbox.trail
    (stored_at, stream, stream_life, sequence, event_id, source, event_type, topic, key, correlation_id, causation_id, size)
select
    now() - make_interval(secs => ago), 'SHOP', 'epoch', sequence, id, source, type, topic, 'order-42', 'order-42', cause, 120
from (values
    (12.0, 1, 'e1', '/orders', 'order.placed', 'orders.placed', null),
    (11.9, 2, 'e2', '/payments', 'payment.taken', 'payments.taken', 'e1'),
    (11.8, 3, 'e2', '/payments', 'payment.taken', 'payments.taken', 'e1'),
    (11.7, 4, 'e3', '/orders', 'order.paid', 'orders.paid', 'e2'),
    (11.5, 5, 'e4', '/inventory', 'stock.reserved', 'stock.reserved', 'e3')
) as message (ago, sequence, id, source, type, topic, cause);
insert into pillarbox.inbox (consumer, event_id, processed_at) values
    ('payments', 'e1', now() - interval '11.95 s'),
    ('orders', 'e2', now() - interval '11.75 s'),
    ('inventory', 'e3', now() - interval '11.6 s');
insert into pillarbox.inbox_failure (consumer, event_id, attempts, last_error, first_failed_at) values
    ('notifications', 'e3', 3, 'the mail server refuses: 421 too many connections', now() - interval '11 s');
