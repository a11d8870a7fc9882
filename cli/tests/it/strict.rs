//! A key waits behind its dead letter with `order = "strict"`; events that no stream takes; what is retried.

use crate::support::{DEADLINE, Shop, discarded, retried};
use async_nats::jetstream::stream;
use pillarbox_relay::{NoStream, RelayConfig, ShippingOrder};
use pillarbox_store::dead_letters::{DeadLetters, Filter, LetterState, LetterView, Side};
use pillarbox_testkit::eventually;

async fn limit_message_size(shop: &Shop, bytes: i32) {
    shop.create_stream(|config| stream::Config { max_message_size: bytes, ..config }).await;
}

fn strict(shop: &Shop) -> RelayConfig {
    RelayConfig { order: ShippingOrder::Strict, ..shop.config() }
}

fn letters(shop: &Shop) -> DeadLetters {
    DeadLetters::new(shop.pool().clone(), "pillarbox", Side::Outbox).unwrap()
}

/// Waits for so many unresolved letters in this state, and returns them.
async fn until(shop: &Shop, state: LetterState, wanted: usize) -> Vec<LetterView> {
    let letters = letters(shop);
    let filter = Filter { state: Some(state), ..Filter::default() };
    eventually(&format!("{wanted} {state}"), DEADLINE, async || {
        let found = letters.list(&filter, 1000).await.map_err(|error| error.to_string())?;
        if found.len() == wanted { Ok(Some(found)) } else { Err(format!("{} found", found.len())) }
    })
    .await
    .unwrap()
}

async fn payloads_of(shop: &Shop, key: &str) -> Vec<String> {
    let stored = shop.stored().await.into_iter();
    stored
        .filter(|stored| stored.key.as_deref() == Some(key))
        .map(|stored| stored.payload)
        .collect()
}

#[tokio::test]
async fn a_key_waits_behind_its_dead_letter_and_follows_it_in_order() {
    let shop = Shop::open().await;
    limit_message_size(&shop, 2_000).await;
    let relay = shop.start(strict(&shop));
    let large = "x".repeat(5_000);
    for (key, payload) in
        [("a", "1"), ("a", &large), ("b", "1"), ("a", "3"), ("b", "2"), ("a", "4")]
    {
        shop.insert_one(key, payload).await;
    }
    shop.until_messages(3).await;
    let dead = until(&shop, LetterState::Dead, 1).await;
    until(&shop, LetterState::Parked, 2).await;
    assert_eq!(payloads_of(&shop, "a").await, ["1"]);
    assert_eq!(payloads_of(&shop, "b").await, ["1", "2"]);

    // Another leader finds the key waiting, too.
    relay.stop().await;
    let relay = shop.start(strict(&shop));
    shop.insert_one("a", "5").await;
    shop.insert_one("b", "3").await;
    shop.until_messages(4).await;
    until(&shop, LetterState::Parked, 3).await;

    // Tried too early, it is dead again, and nothing has overtaken it.
    assert!(retried(&letters(&shop), &dead[0]).await);
    let again = eventually("a second attempt", DEADLINE, async || {
        let dead = until(&shop, LetterState::Dead, 1).await;
        Ok::<_, String>((dead[0].attempts == 2).then_some(dead))
    });
    let again = again.await.unwrap();
    assert_eq!((&again[0].event_id, again[0].reason.as_str()), (&dead[0].event_id, "too_large"));
    assert_eq!(payloads_of(&shop, "a").await, ["1"]);

    limit_message_size(&shop, -1).await;
    // While it is released, the key goes on being written.
    let writing = async {
        for n in 6..40 {
            shop.insert_one("a", &n.to_string()).await;
        }
    };
    let retrying = async { assert!(retried(&letters(&shop), &again[0]).await) };
    tokio::join!(writing, retrying);
    shop.until_messages(4 + 38).await;
    let mut wanted = vec!["1".to_owned(), large];
    wanted.extend((3..40).map(|n| n.to_string()));
    assert_eq!(payloads_of(&shop, "a").await, wanted);
    until(&shop, LetterState::Parked, 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_discarded_letter_lets_its_key_go_on_without_it() {
    let shop = Shop::open().await;
    limit_message_size(&shop, 2_000).await;
    let relay = shop.start(strict(&shop));
    for payload in ["1", &"x".repeat(5_000), "3", &"y".repeat(5_000), "5"] {
        shop.insert_one("a", payload).await;
    }
    let dead = until(&shop, LetterState::Dead, 1).await;
    until(&shop, LetterState::Parked, 3).await;
    assert!(discarded(&letters(&shop), &dead[0]).await);
    // The next one that can never be stored blocks the key in its turn.
    shop.until_messages(2).await;
    let next = until(&shop, LetterState::Parked, 1).await;
    assert_eq!(next[0].payload, "5");
    let dead = until(&shop, LetterState::Dead, 1).await;
    assert_eq!(dead[0].payload[0], b'y');
    assert!(discarded(&letters(&shop), &dead[0]).await);
    shop.until_messages(3).await;
    assert_eq!(payloads_of(&shop, "a").await, ["1", "3", "5"]);
    relay.stop().await;
}

/// Key `a` has two events, many others follow, and then a letter of the key and two events that wait behind it. Then
/// the stream is lost with the relay not there, and made anew with room for so many messages.
async fn lose_the_stream_behind_a_letter(shop: &Shop, room: i64) -> LetterView {
    limit_message_size(shop, 2_000).await;
    let relay = shop.start(strict(shop));
    for n in 0..10 {
        shop.insert_one("b", &n.to_string()).await;
    }
    shop.insert_one("a", "1").await;
    shop.insert_one("a", "2").await;
    shop.insert_many(3_000).await;
    for payload in [&"x".repeat(5_000), "4", "5"] {
        shop.insert_one("a", payload).await;
    }
    shop.until_messages(3_012).await;
    let dead = until(shop, LetterState::Dead, 1).await.remove(0);
    until(shop, LetterState::Parked, 2).await;
    shop.shipped().await;
    eventually("a checkpoint", DEADLINE, async || {
        let taken = "select count(*) from pillarbox.relay_checkpoint where streams <> '{}'";
        Ok::<_, String>((shop.number(taken).await > 0).then_some(()))
    })
    .await
    .unwrap();
    relay.stop().await;
    shop.jetstream().await.delete_stream(&shop.stream).await.unwrap();
    let discard = stream::DiscardPolicy::New;
    shop.create_stream(|config| stream::Config { max_messages: room, discard, ..config }).await;
    dead
}

#[tokio::test]
async fn what_is_parked_is_not_shipped_before_what_is_shipped_again() {
    let shop = Shop::open().await;
    let dead = lose_the_stream_behind_a_letter(&shop, -1).await;
    assert!(discarded(&letters(&shop), &dead).await);
    let relay = shop.start(strict(&shop));
    shop.until_messages(3_014).await;
    assert_eq!(payloads_of(&shop, "a").await, ["1", "2", "4", "5"]);
    until(&shop, LetterState::Parked, 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_new_leader_knows_that_another_was_shipping_again() {
    let shop = Shop::open().await;
    let dead = lose_the_stream_behind_a_letter(&shop, 3).await;
    let relay = shop.start(strict(&shop));
    shop.until_messages(3).await;
    assert!(retried(&letters(&shop), &dead).await);
    let saved = "select count(*) from pillarbox.relay where (cursor -> 'window' ->> 'position')::bigint = 3";
    eventually("a saved cursor", DEADLINE, async || {
        Ok::<_, String>((shop.number(saved).await > 0).then_some(()))
    })
    .await
    .unwrap();
    relay.stop().await;

    shop.create_stream(|config| stream::Config { max_messages: -1, ..config }).await;
    let relay = shop.start(strict(&shop));
    shop.until_messages(3_015).await;
    shop.assert_each_once_in_order().await;
    until(&shop, LetterState::Parked, 0).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_retried_letter_is_shipped_although_nothing_is_left_to_ship_again() {
    let shop = Shop::open().await;
    let dead = lose_the_stream_behind_a_letter(&shop, -1).await;
    sqlx::query("delete from pillarbox.outbox").execute(shop.pool()).await.unwrap();
    assert!(retried(&letters(&shop), &dead).await);
    let relay = shop.start(strict(&shop));
    shop.until_messages(3).await;
    assert_eq!(payloads_of(&shop, "a").await, [&"x".repeat(5_000), "4", "5"]);
    relay.stop().await;
}

#[tokio::test]
async fn what_is_retried_keeps_its_id_and_gets_a_new_message_id() {
    let shop = Shop::open().await;
    limit_message_size(&shop, 2_000).await;
    let relay = shop.start(shop.config());
    shop.insert_one("a", &"x".repeat(5_000)).await;
    shop.insert_one("a", "2").await;
    let dead = until(&shop, LetterState::Dead, 1).await;
    // The key goes on without it.
    shop.until_messages(1).await;
    limit_message_size(&shop, -1).await;
    assert!(retried(&letters(&shop), &dead[0]).await);
    assert!(!retried(&letters(&shop), &dead[0]).await, "it is parked already");
    shop.until_messages(2).await;
    let stream = shop.jetstream().await.get_stream(&shop.stream).await.unwrap();
    let message = stream.get_raw_message(2).await.unwrap();
    let header = |name: &str| message.headers.get(name).unwrap().as_str().to_owned();
    assert_eq!(header("ce-id"), dead[0].event_id);
    assert_eq!(header("Nats-Msg-Id"), format!("{}#1", dead[0].event_id));
    relay.stop().await;
}

#[tokio::test]
async fn an_event_that_no_stream_takes_is_set_aside_if_told_so() {
    let shop = Shop::open().await;
    let nobody = format!("nobody{}.takes", shop.scope.prefix());
    let insert = "insert into pillarbox.outbox (event_type, topic, key, payload) values ('t', $1, 'a', 'held')";
    shop.insert_one("a", "1").await;
    sqlx::query(insert).bind(&nobody).execute(shop.pool()).await.unwrap();
    // Enough for a batch.
    shop.insert_many(1_000).await;
    let relay = shop.start(RelayConfig { no_stream: NoStream::DeadLetter, ..shop.config() });
    let dead = until(&shop, LetterState::Dead, 1).await;
    assert_eq!((dead[0].topic.as_str(), dead[0].reason.as_str()), (nobody.as_str(), "no_stream"));
    assert!(dead[0].error.contains(&nobody), "{}", dead[0].error);
    shop.until_messages(1_001).await;
    relay.stop().await;
}
