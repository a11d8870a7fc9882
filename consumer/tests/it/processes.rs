//! Consumers in processes of their own, killed under load. The processes are this test binary again.

use std::time::Duration;

use crate::support::process::{self, Process};
use crate::support::{self, OrderPlaced, Shop, record};
use pillarbox_consumer::ConsumerConfig;
use pillarbox_inbox::{Handler, HandlerError, Received, Router, Tx};

/// The order whose event kills the process.
const KILLER: i64 = 13;

/// Takes its time, and dies of one order.
struct Mortal;

impl Handler<Received<OrderPlaced>> for Mortal {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        if placed.order == KILLER {
            tokio::time::sleep(Duration::from_millis(100)).await;
            std::process::abort();
        }
        let long = if placed.order > KILLER { 300 } else { 10 };
        tokio::time::sleep(Duration::from_millis(long)).await;
        record(tx, placed).await
    }
}

#[tokio::test]
async fn child() {
    process::consume(Router::new().on(Mortal)).await;
}

#[tokio::test]
async fn a_process_killed_under_load_loses_repeats_and_turns_around_nothing() {
    let shop = Shop::open().await;
    // Nothing is waited for until the broker gives up on a process.
    let config = ConsumerConfig { ack_wait: Duration::from_secs(60), ..shop.config() };
    // Events come all the time, so that the next process is given new ones before those that the last one had.
    let (topic, sender) = (shop.event(0, 0).topic().to_owned(), shop.scope.jetstream());
    let events: Vec<_> = (0..200)
        .flat_map(|step| (0..10).map(move |order| (order, step)))
        .map(|(order, step)| shop.event(order, step))
        .collect();
    let sending = tokio::spawn(async move {
        for ten in events.chunks(10) {
            for event in ten {
                let headers = support::headers(event);
                let payload = event.payload().clone();
                let sent = sender.publish_with_headers(topic.clone(), headers, payload);
                sent.await.unwrap().await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut first = Process::start(module_path!(), &shop, &config);
    shop.until("select least(count(*), 100) from effects", 100).await;
    // The others stand by, and each is killed while it is the active one.
    let mut second = Process::start(module_path!(), &shop, &config);
    first.kill();
    shop.until("select least(count(*), 900) from effects", 900).await;
    let _third = Process::start(module_path!(), &shop, &config);
    second.kill();
    sending.await.unwrap();
    shop.until("select count(*) from effects", 2_000).await;
    shop.drained().await;
    shop.assert_each_once_in_order(2_000).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

#[tokio::test]
async fn a_process_that_comes_back_after_another_took_over_does_no_harm() {
    let shop = Shop::open().await;
    let config = ConsumerConfig {
        ack_wait: Duration::from_secs(60),
        takeover: Duration::from_secs(1),
        handler_timeout: Duration::from_secs(2),
        ..shop.config()
    };
    for step in 0..150 {
        for order in 0..10 {
            shop.send(&shop.event(order, step)).await;
        }
    }
    let first = Process::start(module_path!(), &shop, &config);
    shop.until("select least(count(*), 100) from effects", 100).await;
    let _second = Process::start(module_path!(), &shop, &config);
    // It holds events, and transactions in the middle.
    first.signal("-STOP");
    shop.until("select least(count(*), 400) from effects", 400).await;
    first.signal("-CONT");
    shop.until("select count(*) from effects", 1_500).await;
    shop.drained().await;
    shop.assert_each_once_in_order(1_500).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
    shop.until("select count(*) from pillarbox.inbox_failure", 0).await;
}

#[tokio::test]
async fn an_event_that_kills_three_processes_is_given_up_and_those_beside_it_are_not() {
    let shop = Shop::open().await;
    let config = ConsumerConfig {
        ack_wait: Duration::from_secs(60),
        takeover: Duration::from_secs(1),
        ..shop.config()
    };
    // All of them run at the same time, and none ends before the process does.
    for order in [14, 15, KILLER, 16, 17, 18] {
        shop.send(&shop.event(order, 1)).await;
    }
    shop.send(&shop.event(KILLER + 100, 1)).await;
    for _ in 0..3 {
        assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
        Process::start(module_path!(), &shop, &config).died().await;
    }
    let mut last = Process::start(module_path!(), &shop, &config);
    shop.until(
        "select count(*) from pillarbox.inbox_dead_letter where reason = 'kills' and key = '13'",
        1,
    )
    .await;
    shop.until("select count(*) from effects", 6).await;
    shop.drained().await;
    assert!(last.0.try_wait().unwrap().is_none(), "the fourth lives");
    shop.assert_each_once_in_order(6).await;
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 1);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
}

/// A process that stands by resets the durable consumer when the active one has died. Then the server knows no more of
/// what it has delivered, and the next process may not know of the reset.
async fn a_killer_is_found_after_resets(orders: &[i64], prefetch: usize) {
    let shop = Shop::open().await;
    let config = ConsumerConfig {
        prefetch,
        concurrency: prefetch.min(8),
        ack_wait: Duration::from_secs(60),
        takeover: Duration::from_secs(1),
        ..shop.config()
    };
    for order in orders {
        shop.send(&shop.event(*order, 1)).await;
    }
    let letters = "select count(*) from pillarbox.inbox_dead_letter";
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    let mut deaths = 0;
    let mut process = Process::start(module_path!(), &shop, &config);
    while shop.number(letters).await == 0 {
        if process.0.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        deaths += 1;
        assert!(deaths <= 3, "{deaths} processes died, and the killer is not found");
        stream.reset_consumer("payments", None).await.unwrap();
        process = Process::start(module_path!(), &shop, &config);
    }
    let killer =
        "select count(*) from pillarbox.inbox_dead_letter where reason = 'kills' and key = '13'";
    shop.until(killer, 1).await;
    let rest = orders.len() as i64 - 1;
    shop.until("select count(*) from effects", rest).await;
    shop.drained().await;
    shop.assert_each_once_in_order(rest).await;
    assert_eq!(shop.number(letters).await, 1);
    shop.until("select count(*) from pillarbox.inbox_failure", 0).await;
}

#[tokio::test]
async fn a_killer_is_found_though_the_durable_is_reset_after_each_death() {
    tokio::join!(
        // It is the first one behind the ack floor after the first death.
        a_killer_is_found_after_resets(&[1, 2, 3, 4, 5, KILLER, 6, 7], 64),
        // Others are before it, which do not end before the process does.
        a_killer_is_found_after_resets(&[14, 15, 16, KILLER, 17], 64),
        // It is the last one that a process may hold.
        a_killer_is_found_after_resets(&[14, 15, 16, KILLER, 17, 18], 4),
    );
}
