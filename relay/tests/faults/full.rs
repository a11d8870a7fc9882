//! A stream that is full, and emptied by whoever has read it.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use pillarbox_testkit::{eventually, servers};

use crate::load::{Habits, Load};
use crate::relays::Relays;
use crate::support::{DEADLINE, Shop};
use crate::verdict::Verdict;
use crate::{faults, seed};

/// Whether there is something behind the saved cursor.
const BACKLOG: &str = "select count(*) from pillarbox.outbox, pillarbox.relay where position > (cursor ->> 'high')::bigint";

#[tokio::test]
async fn a_stream_that_is_full_and_then_emptied_holds_the_relay_and_loses_nothing() {
    const ROOM: u64 = 1_000;
    let (times, seed) = (faults(6), seed());
    let shop = Shop::with_stream(servers().await.unwrap().scope().await.unwrap(), |config| {
        Config { max_messages: ROOM as i64, discard: DiscardPolicy::New, ..config }
    })
    .await;
    let load = Load::start(&shop, seed, Habits::default()).await;
    let mut relays = Relays::new(&shop, Duration::from_secs(10));
    relays.start(&[]);
    let stream = shop.jetstream().await.get_stream(&shop.stream).await.unwrap();
    let mut read = Vec::new();
    for time in 1..=times {
        eventually("a full stream, and the relay to hold", DEADLINE, async || {
            let full = shop.messages().await == ROOM && shop.number(BACKLOG).await > 0;
            let reason = relays.said("reason=\"the broker does not store messages now: publish failed: maximum messages exceeded");
            Ok::<_, String>((full && reason >= time).then_some(()))
        })
        .await
        .unwrap();
        // Many attempts, none of which says anything further.
        let said = relays.lines();
        tokio::time::sleep(Duration::from_millis(700)).await;
        let holding = |lines: Vec<Vec<String>>| {
            lines.concat().iter().filter(|line| line.contains("holding")).count()
        };
        assert_eq!(holding(relays.lines()), holding(said), "{:#?}", relays.lines());
        read.extend(shop.stored().await);
        stream.purge().await.unwrap();
    }
    let told = load.stop().await;
    // The rest, as it comes.
    let wanted = shop.number("select count(*) from pillarbox.outbox").await;
    eventually("all of it", DEADLINE, async || {
        if shop.messages().await == ROOM || shop.status().await.backlog_events == 0 {
            let stored = shop.stored().await;
            stream.purge().sequence(last_sequence(&shop).await + 1).await.unwrap();
            read.extend(stored);
        }
        match i64::try_from(read.len()).unwrap() {
            all if all >= wanted => Ok(Some(())),
            some => Err(format!("{some} of {wanted}")),
        }
    })
    .await
    .unwrap();
    shop.shipped().await;
    let verdict = Verdict::of_messages(&shop, &told, &read).await;
    verdict.assert_faultless("full streams", seed, times);
    assert_eq!(shop.number("select count(*) from pillarbox.outbox_dead_letter").await, 0);
}

async fn last_sequence(shop: &Shop) -> u64 {
    let stream = shop.jetstream().await.get_stream(&shop.stream).await.unwrap();
    stream.cached_info().state.last_sequence
}
