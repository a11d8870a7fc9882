//! SIGKILL of the leader at random moments, with two standbys.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::load::{Habits, Load, backlog};
use super::relays::{Relays, spread};
use super::verdict::Verdict;
use super::{CATCH_UP, faults, seed};
use crate::support::Shop;

/// How far the saved cursor is behind the last row, give or take a window.
const BEHIND: &str = "select coalesce(max(position), 0) \
    - (select coalesce(max((cursor ->> 'high')::bigint), 0) from pillarbox.relay) from pillarbox.outbox";

#[tokio::test]
async fn a_leader_that_is_killed_again_and_again_loses_and_turns_around_nothing() {
    const LEASE: Duration = Duration::from_millis(350);
    let (kills, seed) = (faults(50), seed());
    let mut random = StdRng::seed_from_u64(seed);
    let shop = Shop::open().await;
    let load = Load::start(&shop, seed, Habits::default()).await;
    let mut relays = Relays::new(&shop, LEASE);
    // A mixture: most ship by fast ingest where there is enough, some by the keyed window.
    let sink = |random: &mut StdRng| -> &[&str] {
        if random.random_bool(0.25) { &["--keyed-window"] } else { &[] }
    };
    for _ in 0..3 {
        relays.start(sink(&mut random));
    }
    let mut takeovers = Vec::new();
    for _ in 0..kills {
        // Also within the first moments of a leader, when it works off what has piled up.
        let leader = relays.leader().await;
        if random.random_bool(0.5) && shop.number(BEHIND).await < 10_000 {
            // In the middle of a large batch.
            backlog(&shop, 4_000).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        let holder = relays.holder().await.unwrap_or_default();
        let killed = Instant::now();
        relays.processes[leader].kill();
        if holder.contains(&format!("/{}/", relays.processes[leader].id())) {
            takeovers.push(relays.taken_over(&holder, killed).await);
        }
        relays.replace(leader, sink(&mut random));
    }
    let told = load.stop().await;
    shop.shipped_within(CATCH_UP).await;
    println!("kills of the leader, lease {LEASE:?}: {}", spread(takeovers));
    Verdict::of(&shop, &told).await.assert_faultless("kills of the leader", seed, kills);
}
