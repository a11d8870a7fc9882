//! Connections to Postgres that break between a commit and its answer: the writers' and the relay's.

use std::time::Duration;

use pillarbox_testkit::{Proxy, eventually, servers};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::load::{self, Habits, Load};
use super::relays::Relays;
use super::verdict::Verdict;
use super::{CATCH_UP, faults, seed};
use crate::support::{DEADLINE, Shop};

/// What only the connection says on which the relay writes its cursor.
const SAVE: &str = "set cursor = $3::text::jsonb where name = $1 and epoch = $2";

/// The shop's database behind a proxy.
async fn proxied(shop: &Shop) -> (Proxy, String) {
    let port = servers().await.unwrap().postgres.port();
    let proxy = Proxy::to_port(port).await.unwrap();
    let url = shop.scope.database_url().replace(&port.to_string(), &proxy.port().to_string());
    (proxy, url)
}

async fn until_cuts(proxy: &Proxy, wanted: u64) {
    eventually("the cut", DEADLINE, async || {
        Ok::<_, String>((proxy.cuts_at_reply() >= wanted).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_cursor_that_was_saved_without_the_relay_hearing_of_it_does_no_harm() {
    let (cuts, seed) = (faults(40) as u64, seed());
    let mut random = StdRng::seed_from_u64(seed);
    let shop = Shop::open().await;
    let (proxy, url) = proxied(&shop).await;
    let load = Load::start(&shop, seed, Habits::default()).await;
    let mut relays = Relays::new(&shop, Duration::from_secs(10)).database_url(url);
    relays.start(&[]);
    let cursor =
        "select ('x' || substr(md5(cursor::text), 1, 15))::bit(60)::bigint from pillarbox.relay";
    relays.leader().await;
    for cut in 1..=cuts {
        // Once it has saved on a new connection, the statement is prepared there: the next answers are to commits.
        let before = shop.number(cursor).await;
        eventually("a saved cursor", DEADLINE, async || {
            Ok::<_, String>((shop.number(cursor).await != before).then_some(()))
        })
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..120))).await;
        proxy.cut_at_next_reply_where_said(SAVE);
        until_cuts(&proxy, cut).await;
    }
    let told = load.stop().await;
    shop.shipped_within(CATCH_UP).await;
    assert!(relays.said("waiting: events stay in the outbox") > 0);
    let verdict = Verdict::of(&shop, &told).await;
    verdict.assert_faultless("cuts after the relay's commit", seed, cuts as usize);
}

#[tokio::test]
async fn any_answer_of_the_database_to_the_relay_may_be_the_last() {
    let (cuts, seed) = (faults(30) as u64, seed());
    let mut random = StdRng::seed_from_u64(seed);
    let shop = Shop::open().await;
    let (proxy, url) = proxied(&shop).await;
    let load = Load::start(&shop, seed, Habits { writers: 2, ..Habits::default() }).await;
    let mut relays = Relays::new(&shop, Duration::from_secs(10)).database_url(url);
    relays.start(&[]);
    for cut in 1..=cuts {
        // Now and then while it still connects, takes the lease, and reads its first page.
        if random.random_bool(0.8) {
            let before = shop.messages().await;
            shop.until_messages(before + 1).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        proxy.cut_at_next_reply();
        until_cuts(&proxy, cut).await;
    }
    let told = load.stop().await;
    shop.shipped_within(CATCH_UP).await;
    let verdict = Verdict::of(&shop, &told).await;
    verdict.assert_faultless("cuts of the relay's connections", seed, cuts as usize);
}

#[tokio::test]
async fn an_event_is_shipped_if_its_commit_was_done_whatever_its_writer_heard() {
    let (cuts, seed) = (faults(100) as u64, seed());
    let mut random = StdRng::seed_from_u64(seed);
    let shop = Shop::open().await;
    let (proxy, url) = proxied(&shop).await;
    load::prepare(&shop).await;
    let load = Load::through(&shop, &url, seed, Habits::default());
    let mut relays = Relays::new(&shop, Duration::from_secs(10));
    relays.start(&[]);
    for cut in 1..=cuts {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..40))).await;
        // Half of them anywhere in a transaction. Left to chance, none of these may be the answer to a commit.
        match cut % 2 {
            1 => proxy.cut_at_reply_to("COMMIT"),
            _ => proxy.cut_at_next_reply(),
        }
        until_cuts(&proxy, cut).await;
    }
    let told = load.stop().await;
    shop.shipped_within(CATCH_UP).await;
    let verdict = Verdict::of(&shop, &told).await;
    verdict.assert_faultless("cuts after the writer's commit", seed, cuts as usize);
    assert!(verdict.committed_unknown > 0, "no cut hit the answer to a commit");
}
