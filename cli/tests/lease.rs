//! One ships, the others stand by.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use pillarbox_testkit::eventually;
use rustix::process::Signal;
use support::{DEADLINE, Process, Shop};

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
        let status = pillarbox_relay::Status::read(&mut connection, "pillarbox", "other").await?;
        Ok::<_, sqlx::Error>((status.backlog_events == 0).then_some(()))
    })
    .await
    .unwrap();
    assert_eq!(shop.messages().await, 100);
}
