//! A stream is deleted and created anew, or restored from a backup, while a consumer holds events of its old life.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{OrderPlaced, Shop, record, until};
use async_nats::jetstream::stream;
use pillarbox_consumer::{ConsumerConfig, HandlingOrder};
use pillarbox_inbox::{Handler, HandlerError, Received, Router, Tx};
use pillarbox_testkit::{Nats, Postgres, Proxy, Servers};

/// Orders above 100 need a provider, which may be away.
struct Asks(Arc<AtomicBool>);

impl Handler<Received<OrderPlaced>> for Asks {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if placed.order > 100 && !self.0.load(Ordering::SeqCst) {
            return Err(HandlerError::outage("the provider is away"));
        }
        record(tx, placed).await
    }
}

fn stream_config(shop: &Shop) -> stream::Config {
    stream::Config {
        name: shop.stream.clone(),
        subjects: vec![format!("{}.>", shop.scope.prefix())],
        ..Default::default()
    }
}

/// Sends three events that are handled, and three that an outage holds at the sequences 4 to 6.
async fn hold_three(shop: &Shop) {
    for order in [1, 2, 3, 101, 102, 103] {
        shop.send(&shop.event(order, 1)).await;
    }
    shop.until("select count(*) from effects", 3).await;
    shop.until("select count(*) from pillarbox.inbox_failure where outages > 0", 3).await;
}

/// How many of the orders 11 to 20 have taken effect.
const NEW: &str = "select count(*) from effects where order_id between 11 and 20";

async fn assert_the_held_ones_follow(shop: &Shop, provider: &AtomicBool) {
    provider.store(true, Ordering::SeqCst);
    shop.until("select count(*) from effects where order_id > 100", 3).await;
    shop.drained().await;
    shop.assert_each_once_in_order(16).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
}

#[tokio::test]
async fn events_held_from_before_a_stream_was_created_anew_take_none_of_its_places() {
    for order in [HandlingOrder::Key, HandlingOrder::Strict, HandlingOrder::None] {
        let shop = Shop::open().await;
        let provider = Arc::new(AtomicBool::new(false));
        // Held by this process, also without an order.
        let config = ConsumerConfig {
            order,
            backoff: Duration::from_millis(200),
            max_backoff: Duration::from_millis(200),
            ..shop.config()
        };
        let started = shop.start(config, Router::new().on(Asks(provider.clone())));
        hold_three(&shop).await;
        let jetstream = shop.scope.jetstream();
        jetstream.delete_stream(&shop.stream).await.unwrap();
        jetstream.create_stream(stream_config(&shop)).await.unwrap();
        for order in 11..=20 {
            shop.send(&shop.event(order, 1)).await;
        }
        shop.until(NEW, 10).await;
        if order == HandlingOrder::None {
            // What was given back to the old stream is gone with it.
            shop.drained().await;
        } else {
            assert_the_held_ones_follow(&shop, &provider).await;
        }
        started.stop().await;
    }
}

#[tokio::test]
async fn a_stream_created_anew_behind_a_lost_connection_loses_nothing() {
    let shop = Shop::open().await;
    let provider = Arc::new(AtomicBool::new(false));
    let port = pillarbox_testkit::servers().await.unwrap().nats.port();
    let proxy = Proxy::to_port(port).await.unwrap();
    let client = async_nats::connect(format!("nats://127.0.0.1:{}", proxy.port())).await.unwrap();
    let consumer =
        pillarbox_consumer::Consumer::with_config(client, shop.pool().clone(), shop.config())
            .unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let router = Router::new().on(Asks(provider.clone()));
    let running = tokio::spawn(consumer.router(router).run(shutdown.clone()));
    hold_three(&shop).await;
    proxy.refuse();
    proxy.cut();
    let jetstream = shop.scope.jetstream();
    let old = jetstream.get_stream(&shop.stream).await.unwrap();
    let durable = old.consumer_info("payments").await.unwrap().config;
    jetstream.delete_stream(&shop.stream).await.unwrap();
    let new = jetstream.create_stream(stream_config(&shop)).await.unwrap();
    // As another process of the service would.
    new.create_consumer(durable).await.unwrap();
    for order in 11..=20 {
        shop.send(&shop.event(order, 1)).await;
    }
    proxy.accept();
    shop.until(NEW, 10).await;
    assert_the_held_ones_follow(&shop, &provider).await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test]
async fn events_held_from_before_a_stream_was_restored_from_a_backup_take_none_of_its_places() {
    let postgres = Postgres::start().await.unwrap();
    let mut servers = Servers { postgres, nats: Nats::start().await.unwrap() };
    let shop = Shop::on(servers.scope().await.unwrap()).await;
    let provider = Arc::new(AtomicBool::new(false));
    let router = Router::new().on(Asks(provider.clone()));
    let (started, mut status) = shop.start_on(shop.pool(), shop.config(), router);
    for order in 1..=3 {
        shop.send(&shop.event(order, 1)).await;
    }
    shop.until("select count(*) from effects", 3).await;
    shop.drained().await;
    let backup = servers.nats.folder().join("backup");
    servers.nats.stop().await.unwrap();
    copy(&servers.nats.store_dir(), &backup);
    servers.nats.restart().await.unwrap();
    until("the broker", &mut status, |status| status.is_well()).await;
    for order in [101, 102, 103] {
        shop.send(&shop.event(order, 1)).await;
    }
    shop.until("select count(*) from pillarbox.inbox_failure where outages > 0", 3).await;
    servers.nats.stop().await.unwrap();
    std::fs::remove_dir_all(servers.nats.store_dir()).unwrap();
    copy(&backup, &servers.nats.store_dir());
    servers.nats.restart().await.unwrap();
    for order in 11..=20 {
        shop.send(&shop.event(order, 1)).await;
    }
    shop.until(NEW, 10).await;
    assert_the_held_ones_follow(&shop, &provider).await;
    started.stop().await;
}
