//! The JetStream consumer: once, in order, through failures and outages.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::{self, OrderPlaced, Shop, Slow, record};
use async_nats::HeaderMap;
use pillarbox_consumer::{ConsumerConfig, ConsumerError, HandlingOrder};
use pillarbox_inbox::{DeadLetters, Handler, HandlerError, Received, Router, Tx};
use pillarbox_testkit::{Nats, Postgres, Proxy, Servers};

/// Fails in the way its function says, given the event and how often it has been called for it; records after.
struct Failing<F> {
    fails: F,
    calls: Mutex<HashMap<String, u32>>,
}

fn failing<F>(fails: F) -> Failing<F>
where
    F: Fn(&OrderPlaced, u32) -> Result<(), HandlerError>,
{
    Failing { fails, calls: Mutex::default() }
}

impl<F> Handler<Received<OrderPlaced>> for Failing<F>
where
    F: Fn(&OrderPlaced, u32) -> Result<(), HandlerError> + Send + Sync + 'static,
{
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        let call = {
            let mut calls = self.calls.lock().unwrap();
            let call = calls.entry(placed.id().to_string()).or_default();
            *call += 1;
            *call
        };
        (self.fails)(&placed, call)?;
        record(tx, placed).await
    }
}

#[tokio::test]
async fn a_handler_that_fails_twice_succeeds_in_the_end() {
    let shop = Shop::open().await;
    shop.send(&shop.event(1, 1)).await;
    let handler =
        failing(|_, call| if call < 3 { Err(HandlerError::transient("not yet")) } else { Ok(()) });
    let started = shop.start(shop.config(), Router::new().on(handler));
    shop.until("select count(*) from effects", 1).await;
    shop.drained().await;
    started.stop().await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
}

#[tokio::test]
async fn a_handler_that_always_fails_makes_a_dead_letter_and_its_key_goes_on() {
    let shop = Shop::open().await;
    let poison = shop.event(1, 1);
    for event in [&poison, &shop.event(1, 2), &shop.event(2, 1)] {
        shop.send(event).await;
    }
    let handler = failing(|placed, _| match (placed.order, placed.step) {
        (1, 1) => Err(std::io::Error::other("the printer is on fire").into()),
        _ => Ok(()),
    });
    let started = shop.start(shop.config(), Router::new().on(handler));
    shop.until("select count(*) from effects", 2).await;
    shop.drained().await;
    started.stop().await;
    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    let dead = letters.list(10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].reason.as_str(), dead[0].attempts), ("attempts", 3));
    assert!(dead[0].error.contains("the printer is on fire"), "{}", dead[0].error);
    assert_eq!(dead[0].event().unwrap(), poison, "the whole event is kept");
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);

    let shown = letters.show(poison.id().as_str()).await.unwrap().unwrap();
    assert_eq!((shown.state.as_str(), shown.event_id.as_str()), ("dead", poison.id().as_str()));
}

#[tokio::test]
async fn a_permanent_failure_is_not_tried_again() {
    let shop = Shop::open().await;
    shop.send(&shop.event(1, 1)).await;
    let handler = failing(|_, call| {
        assert_eq!(call, 1, "tried again");
        Err(HandlerError::permanent("no such product"))
    });
    let started = shop.start(shop.config(), Router::new().on(handler));
    shop.until("select count(*) from pillarbox.inbox_dead_letter where reason = 'permanent'", 1)
        .await;
    shop.drained().await;
    started.stop().await;
}

#[tokio::test]
async fn a_panic_is_a_failure_and_the_process_lives() {
    let shop = Shop::open().await;
    shop.send(&shop.event(1, 1)).await;
    shop.send(&shop.event(2, 1)).await;
    let handler = failing(|placed, _| match placed.order {
        1 => panic!("index out of bounds"),
        _ => Ok(()),
    });
    let started = shop.start(shop.config(), Router::new().on(handler));
    shop.until("select count(*) from pillarbox.inbox_dead_letter where error like '%panicked: index out of bounds%'", 1).await;
    shop.until("select count(*) from effects", 1).await;
    started.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_a_dead_letter_at_once_with_its_reason() {
    let shop = Shop::open().await;
    let topic = format!("{}.placed", shop.scope.prefix());
    shop.send_raw(&topic, HeaderMap::new(), "no event at all").await;
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("ce-id", "broken-1"), ("ce-type", "order.placed"), ("ce-specversion", "1.0")]
    {
        headers.insert(name, value);
    }
    shop.send_raw(&topic, headers.clone(), "{\"order\": \"not a number\"}").await;
    headers.insert("ce-id", "broken-2");
    headers.insert("ce-type", "order.unheard-of");
    shop.send_raw(&topic, headers, "{}").await;
    shop.send(&shop.event(1, 1)).await;

    let started = shop.start(shop.config(), Router::new().on(record));
    shop.until("select count(*) from effects", 1).await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 3).await;
    shop.drained().await;
    started.stop().await;
    for (like, reason) in [
        ("%no ce-id header%", "undecodable"),
        ("%not what its type says%", "permanent"),
        ("%no handler%order.unheard-of%", "permanent"),
    ] {
        let sql = format!(
            "select count(*) from pillarbox.inbox_dead_letter where error like '{like}' and reason = '{reason}'"
        );
        assert_eq!(shop.number(&sql).await, 1, "{like}");
    }
    let sql = format!(
        "select count(*) from pillarbox.inbox_dead_letter where event_id = '{}:1'",
        shop.stream
    );
    assert_eq!(shop.number(&sql).await, 1);
}

#[tokio::test]
async fn events_of_a_key_keep_their_order_through_random_failures() {
    let shop = Shop::open().await;
    for step in 0..30 {
        for order in 0..10 {
            shop.send(&shop.event(order, step)).await;
        }
    }
    let handler = failing(|_, call| match call {
        1 if rand_bool() => Err(HandlerError::transient("bad luck")),
        _ => Ok(()),
    });
    let started = shop.start(shop.config(), Router::new().on(handler));
    shop.until("select count(*) from effects", 300).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(300).await;
}

fn rand_bool() -> bool {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0).is_multiple_of(4)
}

#[tokio::test]
async fn a_failing_key_holds_back_itself_only() {
    let shop = Shop::open().await;
    shop.send(&shop.event(1, 1)).await;
    shop.send(&shop.event(1, 2)).await;
    for order in 2..20 {
        shop.send(&shop.event(order, 1)).await;
    }
    let handler = failing(|placed, call| match placed.order {
        1 if placed.step == 1 && call == 1 => {
            Err(HandlerError::transient("come back later").retry_after(Duration::from_secs(2)))
        }
        _ => Ok(()),
    });
    let started = shop.start(shop.config(), Router::new().on(handler));
    shop.until("select count(*) from effects", 18).await;
    assert_eq!(shop.number("select count(*) from effects where order_id = 1").await, 0);
    shop.until("select count(*) from effects", 20).await;
    started.stop().await;
    shop.assert_each_once_in_order(20).await;
}

#[tokio::test]
async fn a_slow_handler_is_kept_alive_and_one_that_is_too_slow_is_stopped() {
    let shop = Shop::open().await;
    struct Slow(AtomicU32);
    impl Handler<Received<OrderPlaced>> for Slow {
        async fn handle(
            &self,
            tx: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            let long = Duration::from_millis(if placed.order == 1 { 1_500 } else { 60_000 });
            tokio::time::sleep(long).await;
            record(tx, placed).await
        }
    }
    shop.send(&shop.event(1, 1)).await;
    shop.send(&shop.event(2, 1)).await;
    let config = ConsumerConfig {
        ack_wait: Duration::from_millis(600),
        handler_timeout: Duration::from_secs(3),
        max_attempts: 1,
        ..shop.config()
    };
    let started = shop.start(config, Router::new().on(Slow(AtomicU32::new(0))));
    shop.until("select count(*) from effects", 1).await;
    shop.until(
        "select count(*) from pillarbox.inbox_dead_letter where error like '%took longer than 3s%'",
        1,
    )
    .await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(1).await;
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    let info = stream.consumer_info("payments").await.unwrap();
    assert_eq!(info.num_redelivered, 0);
}

#[tokio::test]
async fn an_event_that_comes_again_after_its_commit_is_skipped() {
    let shop = Shop::open().await;
    let events: Vec<_> = (0..20).map(|order| shop.event(order, 1)).collect();
    let started = shop.start(shop.config(), Router::new().on(record));
    for event in &events {
        shop.send(event).await;
    }
    shop.until("select count(*) from effects", 20).await;
    // As after a lost acknowledgement, or a consumer killed between commit and acknowledgement.
    for event in &events {
        shop.send(event).await;
    }
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(20).await;
}

#[tokio::test]
async fn a_stop_lets_running_handlers_finish_and_starts_no_others() {
    struct Slow;
    impl Handler<Received<OrderPlaced>> for Slow {
        async fn handle(
            &self,
            tx: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            record(tx, placed).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(())
        }
    }
    let shop = Shop::open().await;
    for order in 0..20 {
        shop.send(&shop.event(order, 1)).await;
    }
    let config = ConsumerConfig { concurrency: 4, ..shop.config() };
    let started = shop.start(config.clone(), Router::new().on(Slow));
    shop.until("select count(*) from pg_stat_activity where datname = current_database() and state = 'idle in transaction'", 4).await;
    started.stop().await;
    let handled = shop.number("select count(*) from effects").await;
    assert!((4..20).contains(&handled), "{handled}");
    let started = shop.start(config, Router::new().on(record));
    shop.until("select count(*) from effects", 20).await;
    started.stop().await;
    shop.assert_each_once_in_order(20).await;
}

#[tokio::test]
async fn an_outage_of_the_database_longer_than_all_retries_makes_no_dead_letter() {
    let postgres = Postgres::start().await.unwrap();
    let mut servers = Servers { postgres, nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let started = shop.start(shop.config(), Router::new().on(record));
    for order in 0..50 {
        shop.send(&shop.event(order, 1)).await;
    }
    shop.until("select count(*) from effects", 50).await;
    servers.postgres.kill().unwrap();
    for order in 0..50 {
        shop.send(&shop.event(order, 2)).await;
    }
    // Three attempts with waits of at most 40 ms each would be over long before this.
    tokio::time::sleep(Duration::from_secs(2)).await;
    servers.postgres.restart().await.unwrap();
    shop.until("select count(*) from effects", 100).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(100).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

#[tokio::test]
async fn cut_connections_to_the_broker_neither_lose_nor_turn_around() {
    let shop = Shop::open().await;
    let nats = pillarbox_testkit::servers().await.unwrap();
    let proxy = Proxy::to_port(nats.nats.port()).await.unwrap();
    let client = async_nats::connect(format!("nats://127.0.0.1:{}", proxy.port())).await.unwrap();
    let consumer =
        pillarbox_consumer::Consumer::with_config(client, shop.pool().clone(), shop.config())
            .unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(consumer.on(record).run(shutdown.clone()));
    for step in 0..60 {
        for order in 0..10 {
            shop.send(&shop.event(order, step)).await;
        }
        if step % 10 == 5 {
            proxy.cut();
        }
    }
    shop.until("select count(*) from effects", 600).await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    shop.assert_each_once_in_order(600).await;
}

#[tokio::test]
async fn a_second_process_takes_over_and_keeps_the_order() {
    let shop = Shop::open().await;
    for step in 0..100 {
        for order in 0..5 {
            shop.send(&shop.event(order, step)).await;
        }
    }
    let slow = || Router::new().on(Slow(Duration::from_millis(2)));
    let first = shop.start(shop.config(), slow());
    shop.until("select (count(*) > 50)::int::bigint from effects", 1).await;
    let second = shop.start(shop.config(), slow());
    // As by a kill: what it holds is neither finished nor given back.
    first.running.abort();
    shop.until("select count(*) from effects", 500).await;
    second.stop().await;
    shop.assert_each_once_in_order(500).await;
}

#[tokio::test]
async fn a_process_that_holds_all_it_may_stays_the_active_one() {
    let shop = Shop::open().await;
    struct Slow(&'static AtomicU32);
    impl Handler<Received<OrderPlaced>> for Slow {
        async fn handle(
            &self,
            tx: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            record(tx, placed).await
        }
    }
    static FIRST: AtomicU32 = AtomicU32::new(0);
    static SECOND: AtomicU32 = AtomicU32::new(0);
    let config = ConsumerConfig {
        concurrency: 4,
        prefetch: 4,
        takeover: Duration::from_secs(1),
        ack_wait: Duration::from_secs(60),
        ..shop.config()
    };
    for order in 0..8 {
        shop.send(&shop.event(order, 1)).await;
    }
    let first = shop.start(config.clone(), Router::new().on(Slow(&FIRST)));
    pillarbox_testkit::eventually("the first to begin", support::DEADLINE, async || {
        Ok::<_, String>((FIRST.load(Ordering::SeqCst) == 4).then_some(()))
    })
    .await
    .unwrap();
    let second = shop.start(config, Router::new().on(Slow(&SECOND)));
    shop.until("select count(*) from effects", 8).await;
    first.stop().await;
    second.stop().await;
    let begun = (FIRST.load(Ordering::SeqCst), SECOND.load(Ordering::SeqCst));
    assert_eq!(begun, (8, 0));
}

#[tokio::test]
async fn without_an_order_several_processes_share_the_work() {
    let shop = Shop::open().await;
    let config = ConsumerConfig { order: HandlingOrder::None, prefetch: 8, ..shop.config() };
    struct Mine(&'static str);
    impl Handler<Received<OrderPlaced>> for Mine {
        async fn handle(
            &self,
            tx: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            tokio::time::sleep(Duration::from_millis(5)).await;
            sqlx::query("insert into effects (event_id, order_id, step) values ($1, $2, $3)")
                .bind(placed.id().as_str())
                .bind(if self.0 == "one" { 1_i64 } else { 2 })
                .bind(placed.step)
                .execute(&mut **tx)
                .await?;
            Ok(())
        }
    }
    let one = shop.start(config.clone(), Router::new().on(Mine("one")));
    let two = shop.start(config, Router::new().on(Mine("two")));
    for order in 0..200 {
        shop.send(&shop.event(order, order)).await;
    }
    shop.until("select count(distinct event_id) from effects", 200).await;
    one.stop().await;
    two.stop().await;
    assert_eq!(shop.number("select count(*) from effects").await, 200);
    assert_eq!(
        shop.number("select count(distinct order_id) from effects").await,
        2,
        "both had some"
    );
}

#[tokio::test]
async fn a_consumer_with_other_settings_is_refused_and_not_changed() {
    let shop = Shop::open().await;
    shop.send(&shop.event(1, 1)).await;
    let started = shop.start(shop.config(), Router::new().on(record));
    shop.until("select count(*) from effects", 1).await;
    started.stop().await;
    let other = ConsumerConfig { ack_wait: Duration::from_secs(5), ..shop.config() };
    let refused = shop.start(other, Router::new().on(record)).running.await.unwrap();
    assert!(
        matches!(refused, Err(ConsumerError::Differs { field: "ack_wait", .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_consumer_waits_for_its_stream() {
    let shop = Shop::open().await;
    let config = ConsumerConfig { stream: format!("{}LATER", shop.stream), ..shop.config() };
    let started = shop.start(config.clone(), Router::new().on(record));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let later = async_nats::jetstream::stream::Config {
        name: config.stream,
        subjects: vec![format!("later{}.>", shop.scope.prefix())],
        ..Default::default()
    };
    shop.scope.jetstream().create_stream(later).await.unwrap();
    let event = pillarbox_event::RawEvent::builder(
        "order.placed",
        format!("later{}.placed", shop.scope.prefix()),
    )
    .payload("{\"order\":1,\"step\":1}")
    .build()
    .unwrap();
    shop.send(&event).await;
    shop.until("select count(*) from effects", 1).await;
    started.stop().await;
}

#[tokio::test]
async fn no_message_is_too_odd_to_be_a_dead_letter() {
    let shop = Shop::open().await;
    let topic = format!("{}.placed", shop.scope.prefix());
    let mut headers = HeaderMap::new();
    headers.insert("x-odd", "\\u0000 and \\ud800 and \"");
    shop.send_raw(&topic, headers, "no event").await;
    shop.send(&shop.event(1, 1)).await;
    let started = shop.start(shop.config(), Router::new().on(record));
    shop.until("select count(*) from pillarbox.inbox_dead_letter where headers ->> 'x-odd' = '\\u0000 and \\ud800 and \"'", 1).await;
    shop.until("select count(*) from effects", 1).await;
    shop.drained().await;
    started.stop().await;
}

#[tokio::test]
async fn a_database_that_hangs_costs_no_attempt() {
    let shop = Shop::open().await;
    let port = pillarbox_testkit::servers().await.unwrap().postgres.port();
    let proxy = Proxy::to_port(port).await.unwrap();
    let through: sqlx::postgres::PgConnectOptions = shop.scope.database_url().parse().unwrap();
    let pool = sqlx::PgPool::connect_with(through.port(proxy.port())).await.unwrap();
    async fn slowly(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        record(tx, placed).await
    }
    // A single failure would be the last.
    let config = ConsumerConfig {
        handler_timeout: Duration::from_secs(1),
        max_attempts: 1,
        ..shop.config()
    };
    let consumer =
        pillarbox_consumer::Consumer::with_config(shop.scope.nats().clone(), pool, config).unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(consumer.on(slowly).run(shutdown.clone()));
    for order in 0..100 {
        shop.send(&shop.event(order, 1)).await;
    }
    shop.until("select least(count(*), 10) from effects", 10).await;
    proxy.stall();
    // Longer than handlers may take, and than it takes to find out that the database is not well.
    tokio::time::sleep(Duration::from_secs(6)).await;
    proxy.flow();
    shop.until("select count(*) from effects", 100).await;
    shop.drained().await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    shop.assert_each_once_in_order(100).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

#[tokio::test]
async fn a_consumer_that_starts_before_its_broker_is_pinned_all_the_same() {
    let mut nats = Nats::start().await.unwrap();
    let shop = Shop::open().await;
    let jetstream = async_nats::jetstream::new(nats.connect().await.unwrap());
    let config = async_nats::jetstream::stream::Config {
        name: shop.stream.clone(),
        subjects: vec![format!("{}.>", shop.scope.prefix())],
        ..Default::default()
    };
    let stream = jetstream.create_stream(config).await.unwrap();
    nats.stop().await.unwrap();
    let client = async_nats::ConnectOptions::new()
        .retry_on_initial_connect()
        .connect(nats.url())
        .await
        .unwrap();
    let consumer =
        pillarbox_consumer::Consumer::with_config(client, shop.pool().clone(), shop.config())
            .unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(consumer.on(record).run(shutdown.clone()));
    nats.restart().await.unwrap();
    let info = pillarbox_testkit::eventually("the consumer", support::DEADLINE, async || {
        stream.consumer_info("payments").await.map(Some)
    });
    let info = info.await.unwrap();
    assert_eq!(info.config.priority_groups, ["pillarbox"]);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
