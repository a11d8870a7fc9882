-- A queue with a consumer. The ticker is called by the program, which also decides how often: a tick whenever there
-- is something new. (pgqd ticks once a second, and by default after 3 s or 500 events.)
create extension pgq;
select pgq.create_queue('events');
select pgq.set_queue_config('events', 'ticker_max_lag', '0');
select pgq.register_consumer('events', 'nats');
