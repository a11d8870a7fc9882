//! How long it takes until a standby ships.

use std::time::{Duration, Instant};

use pillarbox_relay::RelayConfig;
use rustix::process::Signal;

use super::load::{Habits, Load};
use super::relays::{Relays, spread};
use super::verdict::Verdict;
use super::{faults, seed};
use crate::support::Shop;

#[tokio::test]
async fn at_the_default_lease_a_standby_takes_over_from_a_killed_leader_within_it() {
    let lease = RelayConfig::default().lease;
    let (seed, shop) = (seed(), Shop::open().await);
    let load = Load::start(&shop, seed, Habits { writers: 1, ..Habits::default() }).await;
    let mut relays = Relays::new(&shop, lease);
    relays.start(&[]);
    relays.start(&[]);
    let leader = relays.leader().await;
    // Somewhere between two renewals.
    tokio::time::sleep(lease.mul_f64(rand::random_range(0.05..0.35))).await;
    let holder = relays.holder().await.unwrap();
    let killed = Instant::now();
    relays.processes[leader].kill();
    let took = relays.taken_over(&holder, killed).await;
    println!("kill of the leader, lease {lease:?}: takeover after {} ms", took.as_millis());
    // The lease had been renewed at some time before the kill; the rest is the standby's way to the first event.
    assert!(took < lease + Duration::from_millis(1_500), "{took:?}");
    let told = load.stop().await;
    shop.shipped().await;
    Verdict::of(&shop, &told).await.assert_faultless("default lease", seed, 1);
}

#[tokio::test]
async fn after_a_clean_stop_a_standby_takes_over_at_once() {
    let (stops, seed) = (faults(8), seed());
    let shop = Shop::open().await;
    let load = Load::start(&shop, seed, Habits { writers: 2, ..Habits::default() }).await;
    let mut relays = Relays::new(&shop, RelayConfig::default().lease);
    relays.start(&[]);
    relays.start(&[]);
    let mut takeovers = Vec::new();
    for _ in 0..stops {
        let leader = relays.leader().await;
        relays.processes[1 - leader].until_said("standing by").await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..600))).await;
        let holder = relays.holder().await.unwrap();
        let stopped = Instant::now();
        relays.processes[leader].signal(Signal::TERM);
        takeovers.push(relays.taken_over(&holder, stopped).await);
        assert_eq!(relays.processes[leader].ended().await, 0);
        relays.replace(leader, &[]);
    }
    let slowest = *takeovers.iter().max().unwrap();
    println!("clean stops of the leader: {}", spread(takeovers));
    assert!(slowest < Duration::from_millis(1_500), "{slowest:?}");
    let told = load.stop().await;
    shop.shipped().await;
    Verdict::of(&shop, &told).await.assert_faultless("clean stops", seed, stops);
}
