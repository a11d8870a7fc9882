//! A stream that is full, and emptied by whoever has read it.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use pillarbox_testkit::{eventually, servers};

use super::load::{Habits, Load};
use super::relays::Relays;
use super::verdict::Verdict;
use super::{faults, seed};
use crate::support::{DEADLINE, Shop, Stored};

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
    let mut read = Vec::new();
    for time in 1..=times {
        eventually("a full stream, and the relay to hold", DEADLINE, async || {
            let (held, backlog) = (shop.messages().await, shop.number(BACKLOG).await);
            let said = relays.said("reason=\"the broker does not store messages now: publish failed: maximum messages exceeded");
            // The server may call it full a little earlier: what a batch has under way counts, too.
            match held > 0 && backlog > 0 && said >= time {
                true => Ok(Some(())),
                false => Err(format!("{held} of {ROOM} messages, a backlog of {backlog}, said {said} times")),
            }
        })
        .await
        .unwrap();
        read.extend(take(&shop).await);
    }
    let told = load.stop().await;
    // The rest, as it comes.
    let wanted = shop.number("select count(*) from pillarbox.outbox").await;
    eventually("all of it", DEADLINE, async || {
        read.extend(take(&shop).await);
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
    // A line for each change, not for each attempt.
    let said = relays.said("holding: events wait in the outbox");
    assert!(said <= 4 * times, "{said} lines about {times} full streams");
}

/// Reads what is in the stream now, and removes exactly that.
async fn take(shop: &Shop) -> Vec<Stored> {
    let stream = shop.jetstream().await.get_stream(&shop.stream).await.unwrap();
    let state = stream.cached_info().state.clone();
    let mut stored = shop.stored().await;
    stored.truncate(usize::try_from(state.messages).unwrap());
    stream.purge().sequence(state.last_sequence + 1).await.unwrap();
    stored
}
