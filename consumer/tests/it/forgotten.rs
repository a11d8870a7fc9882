//! What the inbox has forgotten does not take effect again, whichever way a durable consumer begins.

use std::time::Duration;

use crate::support::{self, DEADLINE, Shop, record};
use pillarbox_consumer::AfterLoss;
use pillarbox_consumer::{ConsumerConfig, ConsumerError};
use pillarbox_inbox::Router;

/// Forgets within a second or two.
fn forgetful(shop: &Shop) -> ConsumerConfig {
    let config = ConsumerConfig {
        max_attempts: 1,
        handler_timeout: Duration::from_millis(900),
        ..shop.config()
    };
    ConsumerConfig { retention: Duration::from_secs(1), ..config }
}

async fn handle(shop: &Shop, config: ConsumerConfig, orders: std::ops::Range<i64>, effects: i64) {
    for order in orders {
        shop.send(&shop.event(order, 1)).await;
    }
    let started = shop.start(config, Router::new().on(record));
    shop.until("select count(*) from effects", effects).await;
    shop.until("select count(*) from pillarbox.inbox", 0).await;
    shop.drained().await;
    started.stop().await;
}

async fn delete_durable(shop: &Shop, name: &str) {
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    stream.delete_consumer(name).await.unwrap();
}

async fn refused(shop: &Shop, config: ConsumerConfig) {
    let started = shop.start(config, Router::new().on(record));
    let ended = tokio::time::timeout(DEADLINE, started.running).await.expect("it says so at once");
    let error = ended.unwrap().unwrap_err();
    assert!(matches!(error, ConsumerError::Forgotten { .. }), "{error:?}");
    assert!(error.to_string().contains("sequence 1,"), "{error}");
}

#[tokio::test]
async fn a_deleted_durable_is_not_made_anew_over_what_was_forgotten() {
    let shop = Shop::open().await;
    handle(&shop, forgetful(&shop), 0..50, 50).await;
    delete_durable(&shop, "payments").await;
    refused(&shop, forgetful(&shop)).await;
    // Nor with a longer memory: it does not bring back what is gone.
    refused(&shop, ConsumerConfig { retention: Duration::from_secs(86_400), ..forgetful(&shop) })
        .await;
    shop.assert_each_once_in_order(50).await;

    // Who accepts that what is older is left out, goes on with what is newer.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let config = ConsumerConfig { after_loss: AfterLoss::Remembered, ..forgetful(&shop) };
    handle(&shop, config, 50..60, 60).await;
    shop.assert_each_once_in_order(60).await;
}

#[tokio::test]
async fn a_durable_that_is_deleted_while_it_is_read_is_not_made_anew_either() {
    let shop = Shop::open().await;
    for order in 0..50 {
        shop.send(&shop.event(order, 1)).await;
    }
    let started = shop.start(forgetful(&shop), Router::new().on(record));
    shop.until("select count(*) from effects", 50).await;
    shop.until("select count(*) from pillarbox.inbox", 0).await;
    delete_durable(&shop, "payments").await;
    // Longer than it takes to notice, and to begin anew.
    tokio::time::sleep(Duration::from_secs(5)).await;
    shop.assert_each_once_in_order(50).await;
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    assert!(stream.consumer_info("payments").await.is_err());
    started.shutdown.cancel();
    let _ = started.running.await.unwrap();
}

#[tokio::test]
async fn a_partition_whose_durable_was_deleted_is_not_read_over_what_was_forgotten() {
    let shop = Shop::open().await;
    let config = ConsumerConfig { partitions: 2, ..forgetful(&shop) };
    for number in 0..2 {
        let topic = format!("{}.{number}.placed", shop.scope.prefix());
        for order in 0..10 {
            let event = shop.event(order, 1 + number);
            let mut headers = support::headers(&event);
            headers.insert("pillarbox-partition", format!("{number}/2"));
            shop.send_raw(&topic, headers, event.payload().clone()).await;
        }
    }
    let started = shop.start(config.clone(), Router::new().on(record));
    shop.until("select count(*) from effects", 20).await;
    shop.until("select count(*) from pillarbox.inbox", 0).await;
    shop.drained().await;
    started.stop().await;
    delete_durable(&shop, "payments-p1of2").await;
    let started = shop.start(config, Router::new().on(record));
    let ended = tokio::time::timeout(DEADLINE, started.running).await.expect("it says so");
    let error = ended.unwrap().unwrap_err();
    assert!(matches!(error, ConsumerError::Forgotten { .. }), "{error:?}");
    assert_eq!(shop.number("select count(*) from effects").await, 20);
}

#[tokio::test]
async fn a_consumer_that_has_forgotten_nothing_reads_everything_and_skips_what_it_knows() {
    let shop = Shop::open().await;
    handle(&shop, forgetful(&shop), 0..10, 10).await;
    // Another consumer, a new one, reads what was there before it.
    let config = ConsumerConfig { name: "ledger".into(), ..shop.config() };
    let started = shop.start(config.clone(), Router::new().on(record));
    shop.until("select count(*) from effects", 20).await;
    shop.drained().await;
    started.stop().await;
    delete_durable(&shop, "ledger").await;
    let started = shop.start(config, Router::new().on(record));
    shop.send(&shop.event(11, 1)).await;
    shop.until("select count(*) from effects", 21).await;
    shop.until("select count(*) from pillarbox.inbox where consumer = 'ledger'", 11).await;
    started.stop().await;
    assert_eq!(shop.number("select count(*) from effects").await, 21);
}

#[tokio::test]
async fn a_consumer_that_was_retired_is_a_new_one() {
    let shop = Shop::open().await;
    handle(&shop, forgetful(&shop), 0..5, 5).await;
    let jetstream = shop.scope.jetstream();
    pillarbox_consumer::generation::retire(&jetstream, shop.pool(), &forgetful(&shop))
        .await
        .unwrap();
    let started = shop.start(shop.config(), Router::new().on(record));
    shop.until("select count(*) from effects", 10).await;
    started.stop().await;
}
