//! A stream with three replicas on a cluster of three nats-servers, whose leader is killed.

use std::time::Duration;

use async_nats::jetstream::stream::Config;
use pillarbox_testkit::{NatsCluster, Scope, eventually, servers};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::load::{Habits, Load};
use super::relays::Relays;
use super::verdict::Verdict;
use super::{CATCH_UP, faults, seed};
use crate::support::{DEADLINE, Shop};

#[tokio::test]
async fn a_cluster_whose_stream_leader_is_killed_again_and_again_loses_and_turns_around_nothing() {
    let (kills, seed) = (faults(3), seed());
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = NatsCluster::start().await.unwrap();
    let postgres = &servers().await.unwrap().postgres;
    let scope = Scope::on(postgres, &cluster.url()).await.unwrap();
    let shop = Shop::with_stream(scope, |config| Config { num_replicas: 3, ..config }).await;
    let load =
        Load::start(&shop, seed, Habits { writers: 3, burst: 600, ..Habits::default() }).await;
    let mut relays = Relays::new(&shop, Duration::from_secs(10));
    relays.start(&[]);
    let shipped =
        async || shop.number("select (cursor ->> 'high')::bigint from pillarbox.relay").await;
    relays.leader().await;
    for _ in 0..kills {
        let before = shipped().await;
        eventually("more to be shipped", DEADLINE, async || {
            Ok::<_, String>((shipped().await > before + 300).then_some(()))
        })
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..500))).await;
        let leader = eventually("the stream's leader", DEADLINE, async || {
            cluster.leader(&shop.stream).await
        })
        .await
        .unwrap();
        cluster.nodes()[leader].kill().unwrap();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..2_000))).await;
        cluster.restart(leader).await.unwrap();
        // The next kill must not take the majority away: that would be another test.
        cluster.until_current(&shop.stream, DEADLINE).await.unwrap();
    }
    let told = load.stop().await;
    shop.shipped_within(CATCH_UP).await;
    Verdict::of(&shop, &told).await.assert_faultless("kills of the stream's leader", seed, kills);
    assert_eq!(shop.number("select count(*) from pillarbox.outbox_dead_letter").await, 0);
}
