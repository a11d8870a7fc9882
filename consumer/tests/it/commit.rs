//! The connection that is lost between COMMIT and its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::{OrderPlaced, Shop, record};
use pillarbox_inbox::{Handler, HandlerError, Received, Tx};
use pillarbox_testkit::{Proxy, servers};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

/// Writes, and has the connection cut when the server answers the next thing, which is the commit.
struct CutAtCommit {
    proxy: Arc<Proxy>,
    calls: Arc<AtomicU32>,
}

impl Handler<Received<OrderPlaced>> for CutAtCommit {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        record(tx, placed).await?;
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.proxy.cut_at_next_reply();
        Ok(())
    }
}

#[tokio::test]
async fn an_effect_whose_commit_was_never_answered_is_there_once() {
    let shop = Shop::open().await;
    let proxy = Arc::new(Proxy::to_port(servers().await.unwrap().postgres.port()).await.unwrap());
    let through: PgConnectOptions = shop.scope.database_url().parse().unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .connect_with(through.port(proxy.port()))
        .await
        .unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    for order in 0..5 {
        shop.send(&shop.event(order, 1)).await;
    }
    let config = pillarbox_consumer::ConsumerConfig { concurrency: 1, ..shop.config() };
    let consumer =
        pillarbox_consumer::Consumer::with_config(shop.scope.nats().clone(), pool, config).unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let handler = CutAtCommit { proxy: proxy.clone(), calls: calls.clone() };
    let running = tokio::spawn(consumer.on(handler).run(shutdown.clone()));
    shop.until("select count(*) from effects", 5).await;
    shop.drained().await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    shop.assert_each_once_in_order(5).await;
    assert_eq!(
        calls.load(Ordering::SeqCst),
        5,
        "the note of the first commit kept the handler from running again"
    );
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    assert!(proxy.connections() > 5, "connections were lost");
}
