//! A nats-server that is killed and started again, and one that stands still.

use std::time::Duration;

use pillarbox_relay::RelayConfig;
use pillarbox_testkit::{Nats, Scope, servers};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::load::{Habits, Load};
use super::relays::Relays;
use super::verdict::Verdict;
use super::{CATCH_UP, faults, seed};
use crate::support::Shop;

#[tokio::test]
async fn a_broker_that_is_killed_again_and_again_costs_no_event() {
    let (kills, seed) = (faults(6), seed());
    let mut random = StdRng::seed_from_u64(seed);
    let mut nats = Nats::start().await.unwrap();
    let postgres = &servers().await.unwrap().postgres;
    let shop = Shop::on(Scope::on(postgres, &nats.url()).await.unwrap()).await;
    let load = Load::start(&shop, seed, Habits::default()).await;
    let mut relays = Relays::new(&shop, Duration::from_secs(10));
    relays.start(&[]);
    for _ in 0..kills {
        let before = shop.messages().await;
        shop.until_messages(before + random.random_range(100..1_500)).await;
        nats.kill().unwrap();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..800))).await;
        nats.restart().await.unwrap();
    }
    let told = load.stop().await;
    shop.shipped_within(CATCH_UP).await;
    Verdict::of(&shop, &told).await.assert_faultless("kills of nats-server", seed, kills);
    assert_eq!(shop.number("select count(*) from pillarbox.outbox_dead_letter").await, 0);
}

#[tokio::test]
async fn a_broker_that_stands_still_for_longer_than_an_acknowledgement_may_take_costs_no_event() {
    let (pauses, seed) = (faults(2).min(10), seed());
    let longer = RelayConfig::default().ack_timeout + Duration::from_millis(1_500);
    let nats = Nats::start().await.unwrap();
    let postgres = &servers().await.unwrap().postgres;
    let shop = Shop::on(Scope::on(postgres, &nats.url()).await.unwrap()).await;
    let load = Load::start(&shop, seed, Habits { writers: 2, ..Habits::default() }).await;
    let mut relays = Relays::new(&shop, Duration::from_secs(10));
    relays.start(&[]);
    for pause in 1..=pauses {
        let before = shop.messages().await;
        shop.until_messages(before + 300).await;
        nats.pause().unwrap();
        tokio::time::sleep(longer).await;
        assert_eq!(relays.said("holding"), pause, "one line for each outage");
        nats.resume().unwrap();
        let before = shop.messages().await;
        shop.until_messages(before + 300).await;
    }
    let told = load.stop().await;
    shop.shipped_within(CATCH_UP).await;
    Verdict::of(&shop, &told).await.assert_faultless("pauses of nats-server", seed, pauses);
    assert_eq!(shop.number("select count(*) from pillarbox.outbox_dead_letter").await, 0);
}
