//! A key waits behind its dead letter with `HandlingOrder::Strict`; what is retried is handled from the table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{OrderPlaced, Shop, record};
use pillarbox_consumer::{ConsumerConfig, HandlingOrder};
use pillarbox_inbox::{DeadLetters, Handler, HandlerError, InboxLayer, Received, Router, Tx};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt};

/// Refuses the second step of order 1 while it is broken.
#[derive(Clone)]
struct Broken(Arc<AtomicBool>);

impl Handler<Received<OrderPlaced>> for Broken {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if (placed.order, placed.step) == (1, 2) && self.0.load(Ordering::SeqCst) {
            return Err(HandlerError::transient("no such account"));
        }
        record(tx, placed).await
    }
}

fn strict(shop: &Shop) -> ConsumerConfig {
    ConsumerConfig { order: HandlingOrder::Strict, ..shop.config() }
}

async fn until_letters(shop: &Shop, state: &str, wanted: i64) {
    let sql = format!(
        "select count(*) from pillarbox.inbox_dead_letter where consumer = 'payments' and state = '{state}'"
    );
    shop.until(&sql, wanted).await;
}

#[tokio::test]
async fn a_key_waits_behind_its_dead_letter_across_a_restart_and_follows_it_in_order() {
    let shop = Shop::open().await;
    let broken = Broken(Arc::new(AtomicBool::new(true)));
    let started = shop.start(strict(&shop), Router::new().on(broken.clone()));
    for step in 1..=4 {
        for order in 1..=2 {
            shop.send(&shop.event(order, step)).await;
        }
    }
    until_letters(&shop, "dead", 1).await;
    until_letters(&shop, "parked", 2).await;
    shop.until("select count(*) from effects where order_id = 2", 4).await;
    started.stop().await;

    // Another process finds the key waiting, too; and so does a repeat of what is parked.
    let started = shop.start(strict(&shop), Router::new().on(broken.clone()));
    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    let found = letters.list(10).await.unwrap();
    shop.send(&found[1].event().unwrap()).await;
    shop.send(&shop.event(1, 5)).await;
    shop.send(&shop.event(2, 5)).await;
    until_letters(&shop, "parked", 3).await;
    shop.until("select count(*) from effects where order_id = 2", 5).await;
    assert_eq!(shop.number("select count(*) from effects where order_id = 1").await, 1);

    // Tried too early, it is dead again, and nothing has overtaken it.
    let dead = found[0].event_id.as_str();
    assert_eq!((found[0].state.as_str(), found[1].state.as_str()), ("dead", "parked"));
    assert!(letters.retry(dead).await.unwrap());
    assert!(!letters.retry(dead).await.unwrap(), "it is parked already");
    shop.until(
        "select count(*) from pillarbox.inbox_dead_letter where state = 'dead' and attempts = 6",
        1,
    )
    .await;
    assert_eq!(shop.number("select count(*) from effects where order_id = 1").await, 1);

    // While it is released, the key goes on being written.
    broken.0.store(false, Ordering::SeqCst);
    assert!(letters.retry(dead).await.unwrap());
    for step in 6..=30 {
        shop.send(&shop.event(1, step)).await;
    }
    shop.until("select count(*) from effects", 35).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(35).await;
    assert!(letters.list(10).await.unwrap().is_empty());
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

#[tokio::test]
async fn a_discarded_letter_lets_its_key_go_on_without_it() {
    let shop = Shop::open().await;
    let broken = Broken(Arc::new(AtomicBool::new(true)));
    let started = shop.start(strict(&shop), Router::new().on(broken));
    for step in 1..=4 {
        shop.send(&shop.event(1, step)).await;
    }
    until_letters(&shop, "parked", 2).await;
    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    let dead = &letters.list(1).await.unwrap()[0];
    assert!(letters.discard(&dead.event_id).await.unwrap());
    shop.until("select count(*) from effects", 3).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(3).await;
    until_letters(&shop, "discarded", 1).await;
    until_letters(&shop, "retried", 2).await;
}

#[tokio::test]
async fn a_key_that_goes_on_has_its_letter_retried_from_the_table_too() {
    for order in [HandlingOrder::Key, HandlingOrder::None] {
        let shop = Shop::open().await;
        let broken = Broken(Arc::new(AtomicBool::new(true)));
        let config = ConsumerConfig { order, ..shop.config() };
        let started = shop.start(config, Router::new().on(broken.clone()));
        for step in 1..=3 {
            shop.send(&shop.event(1, step)).await;
        }
        shop.until("select count(*) from effects", 2).await;
        until_letters(&shop, "dead", 1).await;
        broken.0.store(false, Ordering::SeqCst);
        let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
        let dead = &letters.list(1).await.unwrap()[0];
        assert!(letters.retry(&dead.event_id).await.unwrap());
        shop.until("select count(*) from effects", 3).await;
        until_letters(&shop, "retried", 1).await;
        started.stop().await;
    }
}

/// Never ends.
struct Hangs(Arc<Notify>);

impl Handler<Received<OrderPlaced>> for Hangs {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        record(tx, placed).await?;
        self.0.notify_one();
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_parked_event_whose_process_dies_is_handled_by_another_once() {
    let shop = Shop::open().await;
    let broken = Broken(Arc::new(AtomicBool::new(true)));
    let started = shop.start(strict(&shop), Router::new().on(broken));
    for step in 2..=4 {
        shop.send(&shop.event(1, step)).await;
    }
    until_letters(&shop, "parked", 2).await;
    shop.drained().await;
    started.stop().await;
    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    let dead = letters.list(1).await.unwrap().remove(0);
    assert!(letters.retry(&dead.event_id).await.unwrap());

    let begun = Arc::new(Notify::new());
    let config = ConsumerConfig { handler_timeout: Duration::from_secs(1), ..strict(&shop) };
    let dies = shop.start(config.clone(), Router::new().on(Hangs(begun.clone())));
    begun.notified().await;
    dies.running.abort();
    // It is taken for a while longer, which need not be waited for here.
    let now = sqlx::query("update pillarbox.inbox_dead_letter set due_at = null");
    now.execute(shop.pool()).await.unwrap();
    let started = shop.start(config, Router::new().on(record));
    shop.until("select count(*) from effects", 3).await;
    started.stop().await;
    shop.assert_each_once_in_order(3).await;
    until_letters(&shop, "retried", 3).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

#[tokio::test]
async fn what_stands_behind_a_parked_event_is_not_handled_before_it_by_anybody() {
    let shop = Shop::open().await;
    let broken = Broken(Arc::new(AtomicBool::new(true)));
    let started = shop.start(strict(&shop), Router::new().on(broken));
    for step in 2..=3 {
        shop.send(&shop.event(1, step)).await;
    }
    until_letters(&shop, "parked", 1).await;
    started.stop().await;
    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    let found = letters.list(10).await.unwrap();
    assert!(letters.retry(&found[0].event_id).await.unwrap());
    let layer = InboxLayer::new(shop.pool().clone(), "payments").unwrap();
    let service = layer.layer(Router::new().on(record));
    for (letter, effects) in [(&found[1], 0), (&found[0], 1), (&found[1], 2)] {
        service.clone().oneshot(letter.delivery().unwrap()).await.unwrap();
        assert_eq!(shop.number("select count(*) from effects").await, effects);
    }
    shop.assert_each_once_in_order(2).await;
}
