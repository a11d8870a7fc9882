//! Another process goes on where a killed one stopped.

use std::future::pending;
use std::time::Duration;

use crate::support::{OrderPlaced, Shop, record};
use pillarbox_consumer::ConsumerConfig;
use pillarbox_inbox::{Handler, HandlerError, Received, Router, Tx};
use tokio::sync::mpsc;

/// Tells that it was called, and never ends.
struct Stuck(mpsc::UnboundedSender<()>);

impl Handler<Received<OrderPlaced>> for Stuck {
    async fn handle(&self, _: &mut Tx, _: Received<OrderPlaced>) -> Result<(), HandlerError> {
        self.0.send(()).unwrap();
        pending().await
    }
}

#[tokio::test]
async fn a_process_killed_while_it_held_all_it_might_is_not_waited_for() {
    let shop = Shop::open().await;
    let config = ConsumerConfig {
        concurrency: 4,
        prefetch: 4,
        // Far longer than this test waits: nothing may depend on it.
        ack_wait: Duration::from_secs(600),
        takeover: Duration::from_secs(1),
        ..shop.config()
    };
    for order in 0..20 {
        shop.send(&shop.event(order, 0)).await;
    }
    let (called, mut calls) = mpsc::unbounded_channel();
    let killed = shop.start(config.clone(), Router::new().on(Stuck(called)));
    for _ in 0..4 {
        calls.recv().await.unwrap();
    }
    killed.running.abort();

    let next = shop.start(config, Router::new().on(record));
    shop.until("select count(*) from effects", 20).await;
    shop.drained().await;
    next.stop().await;
    shop.assert_each_once_in_order(20).await;
}
