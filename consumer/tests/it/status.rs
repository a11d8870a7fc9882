//! What a consumer tells about itself: the status, and the numbers, over an ordinary Prometheus exporter.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::support::{self, DEADLINE, OrderPlaced, Shop, Started, record, until};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use pillarbox_consumer::{ConsumerConfig, HandlingOrder, metrics};
use pillarbox_consumer::{ConsumerState, ConsumerStatus, Watch};
use pillarbox_inbox::{Handler, HandlerError, Received, Router, Tx};
use pillarbox_testkit::{Nats, Postgres, Servers, eventually};
use tokio::sync::Semaphore;

/// The exporter of this process.
fn exporter() -> &'static PrometheusHandle {
    static EXPORTER: OnceLock<PrometheusHandle> = OnceLock::new();
    EXPORTER.get_or_init(|| {
        let whole = Matcher::Full(metrics::DURATION.name.into());
        let builder =
            PrometheusBuilder::new().set_buckets_for_metric(whole, metrics::BUCKETS).unwrap();
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        ::metrics::set_global_recorder(recorder).unwrap();
        handle
    })
}

/// A number of this consumer, with more labels or without; `None` if it is not there.
fn value(metric: metrics::Metric, consumer: &str, labels: &str) -> Option<f64> {
    let line = format!("{}{{consumer=\"{consumer}\"{labels}}} ", metric.name);
    exporter().render().lines().find_map(|shown| shown.strip_prefix(&line)?.parse().ok())
}

/// The lag is not known, which is not a lag of 0.
fn assert_unknown(consumer: &str) {
    use metrics::{ACK_PENDING, OLDEST_AGE, PENDING, REDELIVERED};
    for metric in [PENDING, ACK_PENDING, REDELIVERED, OLDEST_AGE] {
        let shown = value(metric, consumer, "").unwrap();
        assert!(shown.is_nan(), "{}: {shown}", metric.name);
    }
}

fn start(shop: &Shop, config: ConsumerConfig, router: Router) -> (Started, Watch) {
    exporter();
    shop.start_on(shop.pool(), config, router)
}

/// Lets as many events through as there are permits.
struct Blocked(Arc<Semaphore>);

impl Handler<Received<OrderPlaced>> for Blocked {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        self.0.acquire().await?.forget();
        record(tx, placed).await
    }
}

#[tokio::test]
async fn the_lag_rises_while_the_handler_is_blocked_and_falls_to_nothing() {
    let shop = Shop::open().await;
    let gate = Arc::new(Semaphore::new(0));
    let config =
        ConsumerConfig { name: "blocked".into(), concurrency: 2, prefetch: 4, ..shop.config() };
    let (started, mut status) = start(&shop, config, Router::new().on(Blocked(gate.clone())));
    let idle = until("a lag", &mut status, |status| status.lag.is_some()).await;
    assert!(idle.is_caught_up() && idle.lag.unwrap().oldest_age_seconds == Some(0.0));
    for order in 0..10 {
        shop.send(&shop.event(order, 1)).await;
    }
    let behind = until("a lag of ten events", &mut status, |status| {
        status.lag.as_ref().is_some_and(|lag| lag.unhandled() == 10 && lag.ack_pending == 4)
    })
    .await;
    assert_eq!(behind.state, ConsumerState::Active);
    assert!(behind.is_well() && !behind.is_caught_up());
    let age = behind.lag.unwrap().oldest_age_seconds.unwrap();
    let older = until("the oldest to grow older", &mut status, |status| {
        status.lag.as_ref().and_then(|lag| lag.oldest_age_seconds).is_some_and(|now| now > age)
    })
    .await;
    assert!((0.0..60.0).contains(&age), "{age}");
    assert_eq!(value(metrics::PENDING, "blocked", ""), Some(6.0));
    assert_eq!(value(metrics::ACK_PENDING, "blocked", ""), Some(4.0));
    assert!(value(metrics::OLDEST_AGE, "blocked", "").unwrap() >= age);
    assert_eq!(value(metrics::ACTIVE, "blocked", ""), Some(1.0));
    let shown = serde_json::to_value(&older).unwrap();
    assert_eq!((&shown["state"], &shown["lag"]["pending"]), (&"active".into(), &6.into()));

    gate.add_permits(10);
    let done = until("nothing left", &mut status, ConsumerStatus::is_caught_up).await;
    assert_eq!((done.totals.handled, done.totals.failures), (10, 0));
    assert_eq!(value(metrics::PENDING, "blocked", ""), Some(0.0));
    assert_eq!(value(metrics::OLDEST_AGE, "blocked", ""), Some(0.0));
    started.stop().await;
    assert_eq!(status.get().state, ConsumerState::Stopped);
    assert_eq!(value(metrics::ACTIVE, "blocked", ""), Some(0.0));
    assert_unknown("blocked");
}

#[tokio::test]
async fn an_outage_of_the_database_is_seen_as_a_pause_and_one_of_the_broker_as_waiting() {
    let postgres = Postgres::start().await.unwrap();
    let mut servers = Servers { postgres, nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let config = ConsumerConfig { name: "outage".into(), ..shop.config() };
    let (started, mut status) = start(&shop, config, Router::new().on(record));
    let alone = until("a subscription", &mut status, |status| status.is_well()).await;
    assert_eq!(alone.state, ConsumerState::Ready, "nobody else is there");
    assert_eq!(serde_json::to_value(&alone).unwrap()["state"], "ready");
    assert_eq!(value(metrics::ACTIVE, "outage", ""), Some(1.0));
    shop.send(&shop.event(1, 1)).await;
    until("the first event", &mut status, |status| status.state == ConsumerState::Active).await;
    shop.until("select count(*) from effects", 1).await;

    servers.postgres.kill().unwrap();
    let is_paused = |status: &ConsumerStatus| matches!(status.state, ConsumerState::Paused { .. });
    let paused = until("a pause", &mut status, is_paused).await;
    assert!(!paused.is_well());
    assert!(paused.last_error.is_some(), "{paused:?}");
    shop.send(&shop.event(1, 2)).await;
    assert_eq!(value(metrics::PAUSED, "outage", ""), Some(1.0));
    assert_eq!(serde_json::to_value(&paused).unwrap()["state"], "paused");
    servers.postgres.restart().await.unwrap();
    until("it to go on", &mut status, |status| {
        status.state == ConsumerState::Active && status.is_caught_up()
    })
    .await;
    assert_eq!(value(metrics::PAUSED, "outage", ""), Some(0.0));
    assert_eq!(value(metrics::FAILURES, "outage", ",fault=\"transient\""), Some(0.0));

    servers.nats.kill().unwrap();
    let is_waiting =
        |status: &ConsumerStatus| matches!(status.state, ConsumerState::Waiting { .. });
    until("waiting for the broker", &mut status, is_waiting).await;
    assert_eq!(value(metrics::PAUSED, "outage", ""), Some(1.0));
    eventually("the lag to be unknown", DEADLINE, async || {
        match value(metrics::PENDING, "outage", "") {
            Some(pending) if pending.is_nan() => Ok(Some(())),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
    assert_unknown("outage");
    servers.nats.restart().await.unwrap();
    until("the broker", &mut status, ConsumerStatus::is_well).await;
    eventually("the lag to be known", DEADLINE, async || {
        Ok::<_, String>((value(metrics::PENDING, "outage", "") == Some(0.0)).then_some(()))
    })
    .await
    .unwrap();
    started.stop().await;
}

#[tokio::test]
async fn every_failure_retry_dead_letter_and_duplicate_is_counted() {
    struct Picky;
    impl Handler<Received<OrderPlaced>> for Picky {
        async fn handle(
            &self,
            tx: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            match placed.order {
                1 => Err(HandlerError::permanent("never")),
                2 => Err(HandlerError::transient("not now")),
                3 if placed.attempt() == 1 => Err(HandlerError::transient("once more")),
                _ => record(tx, placed).await,
            }
        }
    }
    let shop = Shop::open().await;
    for order in 1..=5 {
        shop.send(&shop.event(order, 1)).await;
    }
    let twice = shop.event(6, 1);
    shop.send(&twice).await;
    let mut headers = support::headers(&twice);
    headers.insert("Nats-Msg-Id", "again");
    shop.send_raw(twice.topic(), headers, twice.payload().clone()).await;
    shop.send_raw(twice.topic(), Default::default(), "no event").await;
    let config = ConsumerConfig { name: "counted".into(), ..shop.config() };
    let (started, mut status) = start(&shop, config, Router::new().on(Picky));
    let done = until("everything", &mut status, |status| {
        status.is_caught_up() && status.totals.dead_letters == 3
    })
    .await;
    started.stop().await;
    assert_eq!((done.totals.handled, done.totals.duplicates), (4, 1));
    // Order 1 fails once, order 2 three times, order 3 once.
    assert_eq!((done.totals.failures, done.totals.retries), (5, 3));
    let counted = |metric, labels: &str| value(metric, "counted", labels).unwrap();
    assert_eq!(counted(metrics::HANDLED, ""), 4.0);
    assert_eq!(counted(metrics::DUPLICATES, ""), 1.0);
    assert_eq!(counted(metrics::RETRIES, ""), 3.0);
    assert_eq!(counted(metrics::FAILURES, ",fault=\"transient\""), 4.0);
    assert_eq!(counted(metrics::FAILURES, ",fault=\"permanent\""), 1.0);
    for reason in ["permanent", "attempts", "undecodable"] {
        assert_eq!(counted(metrics::DEAD_LETTERS, &format!(",reason=\"{reason}\"")), 1.0);
    }
    assert_eq!(counted(metrics::DEAD_LETTERS, ",reason=\"kills\""), 0.0);
    let durations = format!("{}_count{{consumer=\"counted\"}} 9", metrics::DURATION.name);
    assert!(exporter().render().contains(&durations), "no {durations:?}");
    assert!(exporter().render().contains(&format!("# HELP {}", metrics::RETRIES.name)));
}

#[tokio::test]
async fn of_two_processes_one_is_active_and_the_other_stands_by() {
    let shop = Shop::open().await;
    let config = ConsumerConfig { name: "pair".into(), ..shop.config() };
    let (first, mut first_status) = start(&shop, config.clone(), Router::new().on(record));
    shop.send(&shop.event(1, 1)).await;
    until("the first", &mut first_status, |status| status.state == ConsumerState::Active).await;
    let (second, mut second_status) = start(&shop, config, Router::new().on(record));
    let mut measured = Vec::new();
    until("the second to have looked a few times", &mut second_status, |status| {
        assert_ne!(status.state, ConsumerState::Active, "there is an active one");
        let at = status.lag.as_ref().map(|lag| lag.measured_at);
        if status.state == ConsumerState::StandingBy && !measured.contains(&at) {
            measured.push(at);
        }
        measured.len() == 3
    })
    .await;
    assert_eq!(first_status.get().state, ConsumerState::Active);
    assert!(second_status.get().is_well());
    first.stop().await;
    until("nobody to be active", &mut second_status, |status| status.state == ConsumerState::Ready)
        .await;
    shop.send(&shop.event(1, 2)).await;
    until("the second to take over", &mut second_status, |status| {
        status.state == ConsumerState::Active
    })
    .await;
    second.stop().await;

    let config =
        ConsumerConfig { name: "shared".into(), order: HandlingOrder::None, ..shop.config() };
    let (third, mut third_status) = start(&shop, config, Router::new().on(record));
    until("without an order", &mut third_status, |status| status.state == ConsumerState::Active)
        .await;
    third.stop().await;
    let gone = tokio::time::timeout(Duration::from_secs(1), third_status.until(|_| false)).await;
    assert_eq!(gone.unwrap(), None, "a consumer that is gone does not keep anyone waiting");
}

#[tokio::test]
async fn events_that_wait_on_the_server_have_an_age_without_an_order_too() {
    /// Gives every event back for a long time.
    struct Away;
    impl Handler<Received<OrderPlaced>> for Away {
        async fn handle(&self, _: &mut Tx, _: Received<OrderPlaced>) -> Result<(), HandlerError> {
            let away = HandlerError::outage("the provider is away");
            Err(away.retry_after(Duration::from_secs(600)))
        }
    }
    let shop = Shop::open().await;
    for order in 0..200 {
        shop.send(&shop.event(order, 1)).await;
    }
    let config =
        ConsumerConfig { name: "aged".into(), order: HandlingOrder::None, ..shop.config() };
    let (started, mut status) = start(&shop, config, Router::new().on(Away));
    shop.until("select count(*) from pillarbox.inbox_failure", 200).await;
    let mut measured = Vec::new();
    until("a few measurements", &mut status, |status| {
        let lag = status.lag.as_ref().filter(|lag| lag.unhandled() == 200);
        if let Some(lag) = lag.filter(|lag| !measured.contains(&lag.measured_at)) {
            assert!(measured.is_empty() || lag.oldest_age_seconds.unwrap() > 1.0, "{lag:?}");
            measured.push(lag.measured_at);
        }
        measured.len() == 3
    })
    .await;
    assert!(value(metrics::OLDEST_AGE, "aged", "").unwrap() > 1.0);
    started.stop().await;
}

#[tokio::test]
async fn without_an_order_the_oldest_event_is_not_the_one_that_happens_to_be_held() {
    /// Gives the first event back for a long time, and keeps the others.
    struct FirstAway;
    impl Handler<Received<OrderPlaced>> for FirstAway {
        async fn handle(
            &self,
            _: &mut Tx,
            placed: Received<OrderPlaced>,
        ) -> Result<(), HandlerError> {
            if placed.order > 0 {
                std::future::pending::<()>().await;
            }
            let away = HandlerError::outage("the provider is away");
            Err(away.retry_after(Duration::from_secs(600)))
        }
    }
    let shop = Shop::open().await;
    let config = ConsumerConfig {
        name: "oldest".into(),
        order: HandlingOrder::None,
        shutdown_timeout: Duration::ZERO,
        ..shop.config()
    };
    shop.send(&shop.event(0, 1)).await;
    let sent = std::time::Instant::now();
    let (started, mut status) = start(&shop, config, Router::new().on(FirstAway));
    shop.until("select count(*) from pillarbox.inbox_failure", 1).await;
    until("it to be of some age", &mut status, |status| {
        let age = status.lag.as_ref().and_then(|lag| lag.oldest_age_seconds);
        age.is_some_and(|age| age > 1.0)
    })
    .await;
    let between = sent.elapsed().as_secs_f64();
    shop.send(&shop.event(1, 1)).await;
    let both = until("both to be unhandled", &mut status, |status| {
        status.lag.as_ref().is_some_and(|lag| lag.unhandled() == 2)
    });
    let age = both.await.lag.unwrap().oldest_age_seconds.unwrap();
    assert!(age >= between - 0.1, "{age}, and it was {between} before");
    started.stop().await;
}

#[tokio::test]
async fn a_stop_with_nothing_to_do_is_immediate() {
    let shop = Shop::open().await;
    for order in [HandlingOrder::Key, HandlingOrder::None] {
        let config = ConsumerConfig { name: format!("{order:?}"), order, ..shop.config() };
        let mut fastest = Duration::MAX;
        // Another test may have the processor.
        for _ in 0..5 {
            let (started, mut status) = start(&shop, config.clone(), Router::new().on(record));
            until("a subscription", &mut status, ConsumerStatus::is_well).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            let began = std::time::Instant::now();
            started.stop().await;
            fastest = fastest.min(began.elapsed());
        }
        assert!(fastest < Duration::from_millis(100), "{order:?}: {fastest:?}");
    }
}

#[tokio::test]
async fn a_stop_while_the_broker_is_away_waits_for_nobody() {
    let servers =
        Servers { postgres: Postgres::start().await.unwrap(), nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let (started, mut status) = start(&shop, shop.config(), Router::new().on(record));
    until("a subscription", &mut status, ConsumerStatus::is_well).await;
    servers.nats.kill().unwrap();
    let is_waiting =
        |status: &ConsumerStatus| matches!(status.state, ConsumerState::Waiting { .. });
    until("waiting for the broker", &mut status, is_waiting).await;
    let began = std::time::Instant::now();
    started.stop().await;
    // It was four seconds.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}
