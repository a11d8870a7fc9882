//! One ships, the others stand by.

use std::time::Duration;

use crate::support::http::Endpoint;
use crate::support::{DEADLINE, Process, Shop};
use pillarbox_testkit::{Proxy, eventually, servers};
use rustix::process::Signal;

#[tokio::test]
async fn a_standby_takes_over_from_a_killed_leader_and_from_one_that_stops() {
    let shop = Shop::open().await;
    let mut first = Process::relay(&shop, &[]);
    first.until_said("leading").await;
    let mut second = Process::relay(&shop, &[]);
    second.until_said("standing by").await;
    shop.insert_many(1_000).await;
    shop.until_messages(1_000).await;
    assert_eq!(second.said("leading"), 0);

    first.kill();
    shop.insert_many(1_000).await;
    second.until_said("leading").await;
    shop.until_messages(2_000).await;

    let third = Process::relay(&shop, &[]);
    third.until_said("standing by").await;
    second.signal(Signal::TERM);
    assert_eq!(second.ended().await, 0);
    third.until_said("leading").await;
    shop.insert_many(1_000).await;
    shop.until_messages(3_000).await;
    shop.shipped().await;
    shop.assert_each_once_in_order().await;
    assert_eq!(shop.status().await.epoch, Some(3));
}

#[tokio::test]
async fn a_leader_that_was_paused_and_wakes_does_no_harm() {
    let shop = Shop::open().await;
    shop.insert_many(80_000).await;
    let first = Process::relay(&shop, &[]);
    shop.until_messages(5_000).await;
    first.signal(Signal::STOP);
    let second = Process::relay(&shop, &[]);
    second.until_said("leading").await;
    shop.until_messages(40_000).await;
    first.signal(Signal::CONT);
    shop.until_messages(80_000).await;
    shop.shipped().await;
    first.until_said("standing by").await;
    assert_eq!(first.said("leading"), 1);
    shop.assert_each_once_in_order().await;
}

#[tokio::test]
async fn two_relays_of_different_names_each_ship_everything() {
    let shop = Shop::open().await;
    shop.insert_many(100).await;
    let one = Process::relay(&shop, &[]);
    one.until_said("leading").await;
    shop.until_messages(100).await;
    let other = Process::relay(&shop, &["--name", "other"]);
    other.until_said("leading").await;
    // The broker drops what it has seen of late; the other's cursor moves all the same.
    eventually("the other relay's cursor to move", DEADLINE, async || {
        let mut connection = shop.pool().acquire().await?;
        let status =
            pillarbox_relay::RelayStatus::read(&mut connection, "pillarbox", "other").await?;
        Ok::<_, sqlx::Error>((status.backlog_events == 0).then_some(()))
    })
    .await
    .unwrap();
    assert_eq!(shop.messages().await, 100);
}

#[tokio::test]
async fn a_leader_that_has_lost_the_broker_lets_a_process_ship_that_reaches_it() {
    const HANDS_OVER: &str = "handing over to a process that reaches the broker";
    let shop = Shop::open().await;
    let way = Proxy::to_port(servers().await.unwrap().nats.port()).await.unwrap();
    let broker = format!("127.0.0.1:{}", way.port());
    let first = Process::relay(&shop, &["--nats-url", &broker, "--http", "127.0.0.1:0"]);
    first.until_said("leading").await;
    let http = Endpoint::of(&first).await;
    let epoch = "select epoch from pillarbox.relay";

    // Nobody else is there: it keeps the lease, and waits.
    way.refuse();
    way.cut();
    shop.insert_one("a", "one").await;
    http.until_ready(503).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((shop.number(epoch).await, shop.messages().await), (1, 0));

    let mut second = Process::relay(&shop, &[]);
    shop.until_messages(1).await;
    second.until_said("leading").await;
    assert_eq!(first.said(HANDS_OVER), 1, "{:#?}", first.lines.lock().unwrap());
    // The first one leaves the lease alone for as long as the other lives, and says that it could not ship.
    http.until("pillarbox_leader{relay=\"default\"}", 0.0).await;
    http.until_ready(503).await;
    shop.insert_one("a", "two").await;
    shop.until_messages(2).await;
    assert_eq!(shop.number(epoch).await, 2);
    way.accept();
    http.until_ready(200).await;
    second.kill();
    shop.insert_one("a", "three").await;
    shop.until_messages(3).await;
    http.until("pillarbox_leader{relay=\"default\"}", 1.0).await;
    shop.assert_each_once_in_order().await;
}
