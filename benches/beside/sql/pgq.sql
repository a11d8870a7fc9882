-- A queue with a consumer. The program calls the ticker and decides how often: it ticks whenever there is something
-- new. (pgqd runs once a second, and by default it ticks after 3 s or 500 events.)
create extension pgq;
select pgq.create_queue('events');
select pgq.set_queue_config('events', 'ticker_max_lag', '0');
select pgq.register_consumer('events', 'nats');
