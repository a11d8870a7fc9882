//! Dead letters by library call: through a running consumer, and through the layer alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::support::{OrderPlaced, Shop, record};
use pillarbox_consumer::{Consumer, ConsumerConfig, HandlingOrder};
use pillarbox_inbox::{
    DeadLetters, Handler, HandlerError, InboxError, InboxLayer, Outcome, Received, Router, Tx,
};
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceBuilder, ServiceExt};

/// Refuses some steps while it is broken.
#[derive(Clone)]
struct Broken {
    steps: &'static [i64],
    now: Arc<AtomicBool>,
}

fn broken(steps: &'static [i64]) -> Broken {
    Broken { steps, now: Arc::new(AtomicBool::new(true)) }
}

impl Handler<Received<OrderPlaced>> for Broken {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if self.steps.contains(&placed.step) && self.now.load(Ordering::SeqCst) {
            return Err(HandlerError::permanent("no such account"));
        }
        record(tx, placed).await
    }
}

#[tokio::test]
async fn a_running_consumer_handles_all_that_is_retried_and_keeps_the_order_of_each_key() {
    let shop = Shop::open().await;
    let handler = broken(&[1]);
    let config = ConsumerConfig { order: HandlingOrder::Strict, ..shop.config() };
    let consumer =
        Consumer::with_config(shop.scope.nats().clone(), shop.pool().clone(), config).unwrap();
    let letters = consumer.dead_letters();
    let shutdown = CancellationToken::new();
    let running =
        tokio::spawn(consumer.router(Router::new().on(handler.clone())).run(shutdown.clone()));
    for step in 1..=4 {
        for order in 1..=5 {
            shop.send(&shop.event(order, step)).await;
        }
    }
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 20).await;
    shop.drained().await;
    assert_eq!(letters.list(100).await.unwrap().len(), 20);
    assert_eq!(letters.list(3).await.unwrap().len(), 3);
    let first = letters.list(1).await.unwrap().remove(0);
    assert!(letters.discard(&first.event_id).await.unwrap());
    assert!(!letters.discard(&first.event_id).await.unwrap(), "it is resolved");
    assert_eq!(letters.show(&first.event_id).await.unwrap().unwrap().state.as_str(), "discarded");

    handler.now.store(false, Ordering::SeqCst);
    assert_eq!(letters.retry_all().await.unwrap(), 4, "the others stand behind them");
    shop.until("select count(*) from effects", 19).await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter where state = 'retried'", 19)
        .await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    shop.assert_each_once_in_order(19).await;
    assert_eq!(letters.retry_all().await.unwrap(), 0);
    assert!(letters.list(100).await.unwrap().is_empty());
}

/// Dead letters as a service with the layer alone makes them: four of order 1, one of order 2.
async fn given_up(shop: &Shop) -> DeadLetters {
    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    let error = InboxError::Slow { doing: "begin" };
    for (order, step) in [(1, 1), (1, 2), (2, 3), (1, 4), (1, 5)] {
        let event = shop.event(order, step);
        assert!(letters.give_up(&event, &error, 7).await.unwrap());
        assert!(!letters.give_up(&event, &error, 7).await.unwrap(), "it is given up");
    }
    letters
}

#[tokio::test]
async fn the_layer_alone_handles_them_here_and_now_and_none_before_one_of_its_key_that_fails() {
    let shop = Shop::open().await;
    let letters = given_up(&shop).await;
    let inbox = InboxLayer::new(shop.pool().clone(), "payments").unwrap();
    let handler = broken(&[2]);
    // With layers around it, as a service has them.
    let service = ServiceBuilder::new()
        .concurrency_limit(1)
        .layer(inbox.clone())
        .service(Router::new().on(handler.clone()));
    let again = inbox.layer(Router::new().on(record));
    let event = letters.list(1).await.unwrap()[0].event().unwrap();
    assert_eq!(again.clone().oneshot(event.into()).await.unwrap(), Outcome::Duplicate);

    let retried = letters.retry_with(service.clone()).await.unwrap();
    assert_eq!((retried.handled, retried.failed.len(), retried.left), (2, 1, 2));
    let (failed, error) = &retried.failed[0];
    let left = inbox.dead_letters().list(10).await.unwrap();
    assert_eq!((failed, left.len()), (&left[0].event_id, 3));
    assert!(format!("{error:?}").contains("no such account"), "{error:?}");
    assert_eq!((left[0].state.as_str(), left[0].attempts), ("dead", 7));
    assert!(left[0].error.contains("too long to begin"), "{}", left[0].error);

    handler.now.store(false, Ordering::SeqCst);
    let retried = letters.retry_with(service.clone()).await.unwrap();
    assert_eq!((retried.handled, retried.failed.len(), retried.left), (3, 0, 0));
    assert_eq!(letters.retry_with(service).await.unwrap().handled, 0);
    shop.assert_each_once_in_order(5).await;
    assert!(letters.list(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_outage_ends_a_retry_and_leaves_the_rest_as_it_is() {
    struct Away(Arc<AtomicU32>);
    impl Handler<Received<OrderPlaced>> for Away {
        async fn handle(&self, _: &mut Tx, _: Received<OrderPlaced>) -> Result<(), HandlerError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Err(HandlerError::environment("the ledger is away"))
        }
    }
    let shop = Shop::open().await;
    let letters = given_up(&shop).await;
    let calls = Arc::new(AtomicU32::new(0));
    let inbox = InboxLayer::new(shop.pool().clone(), "payments").unwrap();
    let service = inbox.layer(Router::new().on(Away(calls.clone())));
    let retried = letters.retry_with(service).await.unwrap();
    assert_eq!((retried.handled, retried.failed.len(), retried.left), (0, 1, 0));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(letters.list(10).await.unwrap().len(), 5);
}

#[tokio::test]
async fn what_was_parked_behind_a_dead_letter_is_not_handled_before_it_by_a_layer_that_is_not_strict()
 {
    let shop = Shop::open().await;
    let config = ConsumerConfig { order: HandlingOrder::Strict, ..shop.config() };
    let started = shop.start(config, Router::new().on(broken(&[1])));
    for step in 1..=2 {
        shop.send(&shop.event(1, step)).await;
    }
    shop.until("select count(*) from pillarbox.inbox_dead_letter where state = 'parked'", 1).await;
    started.stop().await;
    let inbox = InboxLayer::new(shop.pool().clone(), "payments").unwrap();
    let service = inbox.layer(Router::new().on(record));
    let found = inbox.dead_letters().list(10).await.unwrap();
    let parked = found[1].delivery().unwrap();
    assert_eq!(service.clone().oneshot(parked).await.unwrap(), Outcome::Duplicate);
    assert_eq!(shop.number("select count(*) from effects").await, 0);
    let retried = inbox.dead_letters().retry_with(service).await.unwrap();
    assert_eq!((retried.handled, retried.left), (2, 0));
    shop.assert_each_once_in_order(2).await;
}
