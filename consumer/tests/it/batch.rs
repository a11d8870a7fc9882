//! Many events in one transaction.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::process::{self, Process};
use crate::support::{self, OrderPlaced, Shop, Started, headers};
use pillarbox_consumer::{Consumer, ConsumerConfig, HandlingOrder};
use pillarbox_event::RawEvent;
use pillarbox_inbox::batch::IntoBatchHandler;
use pillarbox_inbox::{BatchHandler, DeadLetters, HandlerError, Received, Tx};
use tokio_util::sync::CancellationToken;

async fn record_all(tx: &mut Tx, placed: &[Received<OrderPlaced>]) -> Result<(), HandlerError> {
    for placed in placed {
        support::record(tx, placed.clone()).await?;
    }
    Ok(())
}

/// Records, and fails for the whole slice when `refuses` says so of one of it.
struct Picky<F> {
    refuses: F,
    calls: Arc<AtomicU32>,
    sizes: Arc<Mutex<Vec<usize>>>,
}

fn picky<F: Fn(&Received<OrderPlaced>) -> Option<HandlerError>>(refuses: F) -> Picky<F> {
    Picky { refuses, calls: Arc::default(), sizes: Arc::default() }
}

impl<F> BatchHandler<OrderPlaced> for Picky<F>
where
    F: Fn(&Received<OrderPlaced>) -> Option<HandlerError> + Send + Sync + 'static,
{
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.sizes.lock().unwrap().push(events.len());
        for event in events {
            support::record(tx, event.clone()).await?;
            if let Some(error) = (self.refuses)(event) {
                return Err(error);
            }
        }
        Ok(())
    }
}

fn start<Kind>(
    shop: &Shop,
    config: ConsumerConfig,
    handler: impl IntoBatchHandler<OrderPlaced, Kind>,
) -> Started {
    let consumer =
        Consumer::with_config(shop.scope.nats().clone(), shop.pool().clone(), config).unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.on_batch(handler).run(shutdown.clone()));
    Started { running, shutdown }
}

fn config(shop: &Shop) -> ConsumerConfig {
    ConsumerConfig {
        batch_size: 50,
        batch_linger: Duration::from_millis(50),
        prefetch: 200,
        concurrency: 4,
        ..shop.config()
    }
}

/// Steps of ten orders.
async fn send(shop: &Shop, steps: std::ops::Range<i64>) {
    for step in steps {
        for order in 0..10 {
            shop.send(&shop.event(order, step)).await;
        }
    }
}

#[tokio::test]
async fn a_batch_is_one_transaction_and_repeats_are_skipped() {
    let shop = Shop::open().await;
    let twice = shop.event(3, 0);
    shop.send(&twice).await;
    shop.send(&twice).await;
    send(&shop, 1..20).await;
    shop.send(&twice).await;
    let handler = picky(|_| None);
    let sizes = handler.sizes.clone();
    let started = start(&shop, config(&shop), handler);
    shop.until("select count(*) from effects", 191).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(191).await;
    let sizes = sizes.lock().unwrap().clone();
    assert!(*sizes.iter().max().unwrap() > 10 && *sizes.iter().max().unwrap() <= 50, "{sizes:?}");
    let transactions = shop.number("select count(distinct xmin::text) from pillarbox.inbox").await;
    assert!(transactions < 60, "{transactions} transactions");
}

/// What comes after it can have been begun by nobody, so it need not run singly. See the module `subscription`.
#[tokio::test]
async fn a_process_that_goes_on_after_a_clean_stop_makes_batches_at_once() {
    let shop = Shop::open().await;
    let config = ConsumerConfig { prefetch: 100, ..config(&shop) };
    send(&shop, 0..20).await;
    let first = start(&shop, config.clone(), record_all);
    shop.until("select count(*) from effects", 200).await;
    shop.drained().await;
    first.stop().await;
    // Until the durable consumer is so old that a process may have died with it.
    tokio::time::sleep(config.takeover * 2).await;
    send(&shop, 20..40).await;
    let handler = picky(|_| None);
    let calls = handler.calls.clone();
    let second = start(&shop, config, handler);
    shop.until("select count(*) from effects", 400).await;
    shop.drained().await;
    second.stop().await;
    shop.assert_each_once_in_order(400).await;
    let calls = calls.load(Ordering::SeqCst);
    assert!(calls < 60, "{calls} calls for 200 events");
}

#[tokio::test]
async fn a_function_serves_and_a_lone_event_does_not_wait_for_long() {
    let shop = Shop::open().await;
    let started = start(&shop, config(&shop), record_all);
    shop.send(&shop.event(1, 1)).await;
    shop.until("select count(*) from effects", 1).await;
    shop.drained().await;
    started.stop().await;
}

#[tokio::test]
async fn an_outage_in_a_batch_delays_those_who_need_it_and_nobody_else() {
    let shop = Shop::open().await;
    send(&shop, 0..5).await;
    let away = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let told = away.clone();
    let handler = picky(move |event| {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        (event.order == 1 && told.load(Ordering::SeqCst)).then(|| refused.into())
    });
    let started = start(&shop, config(&shop), handler);
    shop.until("select count(*) from effects", 45).await;
    // Three attempts would be the last.
    shop.until(
        "select least(coalesce(max(outages), 0), 5)::bigint from pillarbox.inbox_failure",
        5,
    )
    .await;
    away.store(false, Ordering::SeqCst);
    shop.until("select count(*) from effects", 50).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(50).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
}

async fn announce(tx: &mut Tx, placed: &[Received<OrderPlaced>]) -> Result<(), HandlerError> {
    let shipped = |placed: &Received<OrderPlaced>| {
        let shipped = RawEvent::builder("order.shipped", "shipped").key(placed.order.to_string());
        shipped.payload(placed.id().as_str().to_owned()).build()
    };
    if let [one] = placed {
        pillarbox_outbox::publish(tx, shipped(one)?).await?;
        return Ok(());
    }
    let all = placed.iter().map(|placed| Ok(shipped(placed)?.caused_by(&placed.context())));
    pillarbox_outbox::publish_all(tx, all.collect::<Result<Vec<_>, HandlerError>>()?).await?;
    Ok(())
}

#[tokio::test]
async fn what_a_batch_publishes_says_which_of_its_events_caused_it() {
    let shop = Shop::open().await;
    pillarbox_outbox::migrate(shop.pool()).await.unwrap();
    send(&shop, 0..5).await;
    let started = start(&shop, config(&shop), announce);
    let caused = "select count(*) from pillarbox.outbox where event_type = 'order.shipped' \
                  and headers ->> 'ce-causationid' = convert_from(payload, 'UTF8') \
                  and headers ->> 'ce-correlationid' = convert_from(payload, 'UTF8')";
    shop.until(caused, 50).await;
    shop.drained().await;
    // A lone event is the cause, and need not be named.
    shop.send(&shop.event(1, 9)).await;
    shop.until(caused, 51).await;
    started.stop().await;
    assert!(shop.number("select count(distinct xmin::text) from pillarbox.outbox").await < 51);
}

#[tokio::test]
async fn failing_events_are_isolated_counted_and_given_up_and_the_rest_commit() {
    let shop = Shop::open().await;
    send(&shop, 0..20).await;
    // One for good, one until its attempts are over, one that works the third time.
    let handler = picky(|event| match (event.order, event.step) {
        (1, 5) => Some(HandlerError::permanent("never")),
        (2, 5) => Some(HandlerError::transient("not now")),
        (3, 5) if event.attempt() < 3 => Some(HandlerError::transient("later")),
        _ => None,
    });
    let calls = handler.calls.clone();
    let started = start(&shop, config(&shop), handler);
    shop.until("select count(*) from effects", 198).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(198).await;
    let letters =
        DeadLetters::new(shop.pool().clone(), "payments").unwrap().list(10).await.unwrap();
    let mut found: Vec<_> = letters
        .iter()
        .map(|letter| (letter.key.as_deref().unwrap(), letter.reason.as_str(), letter.attempts))
        .collect();
    found.sort_unstable();
    assert_eq!(found, [("1", "permanent", 1), ("2", "attempts", 3)]);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
    assert!(calls.load(Ordering::SeqCst) < 100, "not one by one");
}

#[tokio::test]
async fn a_key_waits_behind_its_dead_letter_in_batches_too() {
    let shop = Shop::open().await;
    send(&shop, 0..10).await;
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let told = broken.clone();
    let handler = picky(move |event| {
        let refused = (event.order, event.step) == (1, 5) && told.load(Ordering::SeqCst);
        refused.then(|| HandlerError::permanent("never"))
    });
    let started =
        start(&shop, ConsumerConfig { order: HandlingOrder::Strict, ..config(&shop) }, handler);
    shop.until("select count(*) from effects", 95).await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter where state = 'parked'", 4).await;
    broken.store(false, Ordering::SeqCst);
    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    let dead = &letters.list(1).await.unwrap()[0];
    assert!(letters.retry(&dead.event_id).await.unwrap());
    shop.until("select count(*) from effects", 100).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(100).await;
}

#[tokio::test]
async fn what_is_no_event_of_its_handler_is_a_dead_letter_and_the_rest_commit() {
    let shop = Shop::open().await;
    let good = shop.event(1, 1);
    let mut other = headers(&shop.event(1, 2));
    other.insert("ce-type", "order.unheard-of");
    shop.send(&good).await;
    shop.send_raw(good.topic(), other, "{}").await;
    shop.send_raw(good.topic(), headers(&shop.event(1, 3)), "junk").await;
    shop.send_raw(good.topic(), async_nats::HeaderMap::new(), "no event at all").await;
    shop.send(&shop.event(1, 4)).await;
    let started = start(&shop, config(&shop), record_all);
    shop.until("select count(*) from effects", 2).await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter where reason = 'permanent'", 2)
        .await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter where reason = 'undecodable'", 1)
        .await;
    shop.drained().await;
    started.stop().await;
}

/// Hangs on one event of a slice.
struct Hangs;

impl BatchHandler<OrderPlaced> for Hangs {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        for event in events {
            support::record(tx, event.clone()).await?;
            if (event.order, event.step) == (1, 1) {
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn an_event_that_takes_too_long_is_found_by_itself() {
    let shop = Shop::open().await;
    send(&shop, 0..3).await;
    let config = ConsumerConfig {
        handler_timeout: Duration::from_millis(300),
        max_attempts: 1,
        ..config(&shop)
    };
    let started = start(&shop, config, Hangs);
    shop.until("select count(*) from effects", 29).await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter where key = '1'", 1).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(29).await;
}

/// Takes its time in the middle.
struct Slow;

impl BatchHandler<OrderPlaced> for Slow {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        let half = events.len() / 2;
        for (n, event) in events.iter().enumerate() {
            support::record(tx, event.clone()).await?;
            if n == half {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn child() {
    if let Some((consumer, _, _)) = process::consumer().await {
        consumer.on_batch(Slow).run(CancellationToken::new()).await.unwrap();
    }
}

#[tokio::test]
async fn a_process_killed_in_the_middle_of_its_batches_loses_repeats_and_turns_around_nothing() {
    let shop = Shop::open().await;
    let config = ConsumerConfig {
        ack_wait: Duration::from_secs(60),
        takeover: Duration::from_secs(1),
        ..config(&shop)
    };
    send(&shop, 0..100).await;
    let first = Process::start(module_path!(), &shop, &config);
    shop.until("select least(count(*), 100) from effects", 100).await;
    // Batches are in their transactions all the time.
    shop.until("select least(count(*), 1) from pg_stat_activity where datname = current_database() and state = 'idle in transaction'", 1).await;
    drop(first);
    assert!(shop.number("select count(*) from effects").await < 1_000);
    let second = Process::start(module_path!(), &shop, &config);
    shop.until("select count(*) from effects", 1_000).await;
    shop.drained().await;
    drop(second);
    shop.assert_each_once_in_order(1_000).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

/// Publishes an event for each that it takes, and refuses one of them after that.
async fn pay_all(tx: &mut Tx, placed: &[Received<OrderPlaced>]) -> Result<(), HandlerError> {
    for placed in placed {
        let paid = RawEvent::builder("order.paid", "orders.paid");
        let paid = paid.key(format!("{} {}", placed.order, placed.step)).payload("{}").build()?;
        pillarbox_outbox::publish_with_commit(tx, paid).await?;
        support::record(tx, placed.clone()).await?;
    }
    match placed.iter().any(|placed| (placed.order, placed.step) == (3, 2)) {
        true => Err(HandlerError::permanent("no such account")),
        false => Ok(()),
    }
}

#[tokio::test]
async fn events_that_travel_with_the_commit_leave_with_the_part_that_published_them() {
    let shop = Shop::open().await;
    pillarbox_outbox::migrate(shop.pool()).await.unwrap();
    // The database refuses one, too.
    let refuse = "alter table pillarbox.outbox add constraint refused check (key <> '5 1')";
    sqlx::raw_sql(refuse).execute(shop.pool()).await.unwrap();
    send(&shop, 1..4).await;
    let config = ConsumerConfig { max_attempts: 1, ..config(&shop) };
    let started = start(&shop, config, pay_all);
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 2).await;
    shop.until("select count(*) from effects", 28).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(28).await;
    let matched = "select count(*) from pillarbox.outbox join effects \
                   on key = order_id::text || ' ' || step::text";
    assert_eq!(shop.number(matched).await, 28);
    assert_eq!(shop.number("select count(*) from pillarbox.outbox").await, 28);
}
