//! A stream that can lose events before they are handled, and one that has lost some.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{OrderPlaced, Shop, Started, record, until};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Stream};
use pillarbox_consumer::{ConsumerConfig, ConsumerState, ConsumerStatus, Removed, Watch};
use pillarbox_inbox::{Handler, HandlerError, Received, Router, Tx};
use tokio::sync::Semaphore;

async fn stream(shop: &Shop) -> Stream {
    shop.scope.jetstream().get_stream(&shop.stream).await.unwrap()
}

async fn set(shop: &Shop, change: impl FnOnce(&mut Config)) {
    let mut config = stream(shop).await.cached_info().config.clone();
    change(&mut config);
    shop.scope.jetstream().update_stream(config).await.unwrap();
}

/// At most so many messages, the newest ones.
async fn keep(shop: &Shop, newest: i64) {
    set(shop, |config| (config.max_messages, config.discard) = (newest, DiscardPolicy::Old)).await;
}

async fn send(shop: &Shop, orders: Range<i64>) {
    for order in orders {
        shop.send(&shop.event(order, 1)).await;
    }
}

async fn told(status: &mut Watch, events: u64) -> Removed {
    let what = format!("{events} removed events");
    let told = until(&what, status, |status| {
        status.removed.as_ref().is_some_and(|removed| removed.events >= events)
    });
    told.await.removed.unwrap()
}

#[tokio::test]
async fn a_stream_that_may_drop_what_is_not_handled_is_warned_of_and_read_all_the_same() {
    let shop = Shop::open().await;
    set(&shop, |config| config.max_messages = 1_000).await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), Router::new().on(record));
    let warns = |named: &'static str| {
        move |status: &ConsumerStatus| {
            let all = status.warnings.as_deref().unwrap_or_default();
            all.len() == 1 && all[0].contains(named) && status.is_well()
        }
    };
    until("the warning", &mut status, warns("max_msgs = 1000")).await;
    send(&shop, 0..1).await;
    shop.until("select count(*) from effects", 1).await;
    // While it runs, too; and what is mended is told no more.
    set(&shop, |config| config.discard = DiscardPolicy::New).await;
    until("no warning", &mut status, |status| {
        status.warnings.as_ref().is_some_and(Vec::is_empty) && status.is_well()
    })
    .await;
    set(&shop, |config| config.max_messages_per_subject = 5).await;
    until("another warning", &mut status, warns("max_msgs_per_subject = 5")).await;
    assert!(!started.running.is_finished());
    assert_eq!(status.get().removed, None);
    started.stop().await;
}

#[tokio::test]
async fn what_was_removed_while_nobody_ran_is_told_with_its_sequences() {
    let shop = Shop::open().await;
    let router = || Router::new().on(record);
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    until("a subscription", &mut status, ConsumerStatus::is_well).await;
    send(&shop, 0..5).await;
    shop.until("select count(*) from effects", 5).await;
    shop.drained().await;
    started.stop().await;
    keep(&shop, 10).await;
    send(&shop, 5..25).await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router());
    let removed = told(&mut status, 10).await;
    assert_eq!((removed.events, removed.first_sequence, removed.last_sequence), (10, 6, 15));
    let caught_up = until("the rest", &mut status, ConsumerStatus::is_caught_up).await;
    assert!(caught_up.is_well());
    shop.until("select count(*) from effects", 15).await;
    started.stop().await;
    assert_eq!(status.get().removed, Some(removed), "once");
}

/// Waits until it may go on.
struct Held(Arc<Semaphore>);

impl Handler<Received<OrderPlaced>> for Held {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        self.0.acquire().await.unwrap().forget();
        record(tx, placed).await
    }
}

/// A consumer that holds 8 events, and handles none of them before there are permits.
async fn full(shop: &Shop, filter: Option<&str>) -> (Started, Watch, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let filters = filter.map(|filter| format!("{}.{filter}", shop.scope.prefix()));
    let config = ConsumerConfig {
        filter_subjects: vec![filters.unwrap_or_else(|| ">".into())],
        concurrency: 4,
        prefetch: 8,
        ..shop.config()
    };
    let router = Router::new().on(Held(gate.clone()));
    let (started, mut status) = shop.start_on(shop.pool(), config, router);
    send(shop, 0..8).await;
    until("them to be held", &mut status, |status| {
        status.lag.as_ref().is_some_and(|lag| lag.ack_pending == 8 && lag.pending == 0)
    })
    .await;
    (started, status, gate)
}

#[tokio::test]
async fn what_is_purged_is_told_also_where_only_some_subjects_are_read() {
    let shop = Shop::open().await;
    let (started, mut status, gate) = full(&shop, Some("placed")).await;
    send(&shop, 8..30).await;
    until("the others to wait", &mut status, |status| {
        status.lag.as_ref().is_some_and(|lag| lag.pending == 22)
    })
    .await;
    stream(&shop).await.purge().await.unwrap();
    let removed = told(&mut status, 22).await;
    assert_eq!((removed.events, removed.first_sequence, removed.last_sequence), (22, 9, 30));
    // What it holds it handles.
    gate.add_permits(8);
    shop.until("select count(*) from effects", 8).await;
    started.stop().await;
}

#[tokio::test]
async fn what_is_pushed_out_while_it_runs_is_told() {
    let shop = Shop::open().await;
    keep(&shop, 20).await;
    let (started, mut status, gate) = full(&shop, None).await;
    send(&shop, 8..58).await;
    let told = until("what was removed", &mut status, |status| {
        status.removed.as_ref().is_some_and(|removed| removed.last_sequence == 38)
    });
    let removed = told.await.removed.unwrap();
    // Where an event is pushed out that is held, the server delivers another one: each is handled, or told.
    let handled = 58 - i64::try_from(removed.events).unwrap();
    gate.add_permits(58);
    shop.until("select count(*) from effects", handled).await;
    until("the rest", &mut status, ConsumerStatus::is_caught_up).await;
    assert_eq!(status.get().removed.unwrap().events, removed.events);
    started.stop().await;
}

#[tokio::test]
async fn a_stream_that_removes_what_was_handled_loses_nothing() {
    let shop = Shop::open().await;
    keep(&shop, 5).await;
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), Router::new().on(record));
    until("a subscription", &mut status, ConsumerStatus::is_well).await;
    for round in 0..4 {
        send(&shop, 4 * round..4 * round + 4).await;
        shop.until("select count(*) from effects", 4 * round + 4).await;
        shop.drained().await;
    }
    stream(&shop).await.purge().await.unwrap();
    // Two looks at it.
    for _ in 0..2 {
        let before = status.get().lag.map(|lag| lag.measured_at);
        until("another look", &mut status, |status| {
            status.lag.as_ref().map(|lag| lag.measured_at) > before
        })
        .await;
    }
    assert_eq!(status.get().removed, None);
    started.stop().await;
}

/// Fails until it is mended, as if the event's own provider were away.
#[derive(Clone)]
struct Away(Arc<AtomicBool>);

impl Handler<Received<OrderPlaced>> for Away {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if self.0.load(Ordering::SeqCst) {
            return Err(HandlerError::outage("away").retry_after(Duration::from_secs(1)));
        }
        record(tx, placed).await
    }
}

/// Holds as many events of as many keys as it may, none of which succeeds. The stream removes them, so that the server
/// delivers others; none of them is taken on, and this process stays the active one.
async fn no_more_are_held(how: &str, remove: impl AsyncFn(&Shop)) {
    let shop = Shop::open().await;
    let config = ConsumerConfig { concurrency: 4, prefetch: 8, ..shop.config() };
    let away = Away(Arc::new(AtomicBool::new(true)));
    let (started, mut status) = shop.start_on(shop.pool(), config, Router::new().on(away.clone()));
    let tried = "select count(*) from pillarbox.inbox_failure";
    send(&shop, 0..8).await;
    shop.until(tried, 8).await;
    remove(&shop).await;
    let first = stream(&shop).await.info().await.unwrap().state.first_sequence;
    assert!(first > 8, "{how}: what is held is still in the stream");
    // Several looks at it, longer than a pin lasts.
    let mut before = status.get().lag.map(|lag| lag.measured_at);
    for _ in 0..3 {
        let now = until("another look", &mut status, |status| {
            status.lag.as_ref().map(|lag| lag.measured_at) > before
        });
        let now = now.await;
        before = now.lag.map(|lag| lag.measured_at);
        assert_eq!(now.state, ConsumerState::Active, "{how}");
        assert_eq!(shop.number(tried).await, 8, "{how}");
    }
    away.0.store(false, Ordering::SeqCst);
    until("the rest", &mut status, ConsumerStatus::is_caught_up).await;
    shop.until(tried, 0).await;
    let effects = shop.number("select count(*) from effects").await;
    assert!(effects >= 8, "{how}: {effects}");
    started.stop().await;
    shop.assert_each_once_in_order(effects).await;
}

#[tokio::test]
async fn a_stream_that_removes_what_is_held_makes_no_process_hold_more_than_it_may() {
    tokio::join!(
        no_more_are_held("max_msgs", async |shop| {
            keep(shop, 20).await;
            send(shop, 8..58).await;
        }),
        no_more_are_held("max_bytes", async |shop| {
            let bytes = stream(shop).await.cached_info().state.bytes;
            let change = |config: &mut Config| {
                (config.max_bytes, config.discard) = (2 * bytes as i64, DiscardPolicy::Old);
            };
            set(shop, change).await;
            send(shop, 8..58).await;
        }),
        no_more_are_held("max_msgs_per_subject", async |shop| {
            set(shop, |config| config.max_messages_per_subject = 12).await;
            send(shop, 8..58).await;
        }),
        no_more_are_held("a purge", async |shop| {
            stream(shop).await.purge().await.unwrap();
            send(shop, 8..58).await;
        }),
    );
}
