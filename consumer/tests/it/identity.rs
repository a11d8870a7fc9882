//! What tells events apart: ids of several sources, ids that differ only in what decoding throws away, and what a
//! relay ships under another source than before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::Shop;
use async_nats::HeaderMap;
use pillarbox_consumer::{Consumer, ConsumerConfig, HandlingOrder};
use pillarbox_event::RawEvent;
use pillarbox_inbox::{DeadLetters, Handler, HandlerError, LetterError, Received, Router, Tx};
use tokio_util::sync::CancellationToken;

const UUID: &str = "0199b0c5-5c7e-7000-8000-000000000001";

async fn send(shop: &Shop, headers: &[(&str, &str)]) {
    let mut all = HeaderMap::new();
    all.insert("ce-type", "order.placed");
    for (name, value) in headers {
        all.append(*name, *value);
    }
    shop.send_raw(&format!("{}.placed", shop.scope.prefix()), all, "{}").await;
}

async fn note(tx: &mut Tx, event: Received<RawEvent>) -> Result<(), HandlerError> {
    sqlx::query("insert into effects (event_id) values ($1)")
        .bind(event.idempotency_key())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn note_all(tx: &mut Tx, events: &[Received<RawEvent>]) -> Result<(), HandlerError> {
    for event in events {
        note(tx, event.clone()).await?;
    }
    Ok(())
}

/// Nine messages of three ids.
async fn send_ids_of_sources(shop: &Shop) {
    for id in ["1", "2", UUID] {
        for source in ["/shop", "/billing"] {
            send(shop, &[("ce-id", id), ("ce-source", source)]).await;
        }
        send(shop, &[("ce-id", id)]).await;
    }
}

#[tokio::test]
async fn an_id_takes_effect_once_for_each_source_that_gave_it() {
    let shop = Shop::open().await;
    let started = shop.start(shop.config(), Router::new().on(note));
    for _ in 0..3 {
        send_ids_of_sources(&shop).await;
    }
    shop.until("select count(*) from effects", 9).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(9).await;
    let longest = "select max(octet_length(event_id))::bigint from pillarbox.inbox";
    assert_eq!(shop.number(longest).await, 36, "the inbox's rows are no longer than with UUIDs");
}

#[tokio::test]
async fn a_batch_takes_the_same_ids_of_other_sources_for_other_events() {
    let shop = Shop::open().await;
    for _ in 0..3 {
        send_ids_of_sources(&shop).await;
    }
    let config = ConsumerConfig { batch_size: 50, ..shop.config() };
    let consumer =
        Consumer::with_config(shop.scope.nats().clone(), shop.pool().clone(), config).unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.on_batch(note_all).run(shutdown.clone()));
    shop.until("select count(*) from effects", 9).await;
    shop.drained().await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    shop.assert_each_once_in_order(9).await;
}

#[tokio::test]
async fn ids_that_differ_only_in_what_decoding_throws_away_are_several_events() {
    let shop = Shop::open().await;
    let started = shop.start(shop.config(), Router::new().on(note));
    for _ in 0..2 {
        for id in ["A", "%41", "a", "%FF", "%FE", "100%", "100%25", "caf\u{e9}", "cafe\u{301}"] {
            send(&shop, &[("ce-id", id)]).await;
            send(&shop, &[("ce-id", id), ("ce-source", "/shop")]).await;
        }
        send(&shop, &[("ce-id", "1"), ("ce-id", "2")]).await;
        send(&shop, &[("ce-id", "1"), ("ce-id", "3")]).await;
        // No matter how the name is written.
        send(&shop, &[("CE-ID", "A")]).await;
    }
    shop.until("select count(*) from effects", 20).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(20).await;
}

#[tokio::test]
async fn what_a_relay_ships_again_under_another_source_takes_effect_once() {
    let shop = Shop::open().await;
    let started = shop.start(shop.config(), Router::new().on(note));
    for source in ["/pillarbox", "/orders", "/pillarbox"] {
        let headers = [("ce-id", UUID), ("ce-source", source), ("pillarbox-outbox", "1")];
        send(&shop, &headers).await;
    }
    // No relay sent that.
    send(&shop, &[("ce-id", UUID), ("ce-source", "/orders")]).await;
    shop.until("select count(*) from effects", 2).await;
    shop.drained().await;
    started.stop().await;
    let plain = format!("select count(*) from pillarbox.inbox where event_id = '{UUID}'");
    assert_eq!(shop.number(&plain).await, 1, "an operator finds it by its id");
}

/// Fails for some of the sources, for as long as they are here.
#[derive(Clone, Default)]
struct Picky {
    fails: Arc<Mutex<Vec<&'static str>>>,
    calls: Arc<Mutex<HashMap<String, u32>>>,
}

impl Handler<Received<RawEvent>> for Picky {
    async fn handle(&self, tx: &mut Tx, event: Received<RawEvent>) -> Result<(), HandlerError> {
        let source = event.raw().source().unwrap_or_default().to_owned();
        let fails = self.fails.lock().unwrap().iter().any(|fails| *fails == source);
        *self.calls.lock().unwrap().entry(source).or_default() += 1;
        if fails {
            return Err(HandlerError::transient("no such account"));
        }
        note(tx, event).await
    }
}

#[tokio::test]
async fn the_failures_and_letters_of_one_id_of_two_sources_are_kept_apart() {
    let shop = Shop::open().await;
    let picky = Picky::default();
    picky.fails.lock().unwrap().extend(["/shop", "/billing"]);
    let config = ConsumerConfig { order: HandlingOrder::Strict, ..shop.config() };
    let started = shop.start(config, Router::new().on(picky.clone()));
    for source in ["/shop", "/billing", "/returns"] {
        send(&shop, &[("ce-id", "1"), ("ce-source", source)]).await;
    }
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 2).await;
    shop.drained().await;
    assert_eq!(shop.number("select count(*) from effects").await, 1);
    {
        let calls = picky.calls.lock().unwrap();
        assert_eq!((calls["/shop"], calls["/billing"], calls["/returns"]), (3, 3, 1));
    }
    assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);

    let letters = DeadLetters::new(shop.pool().clone(), "payments").unwrap();
    let listed = letters.list(10).await.unwrap();
    let mut sources: Vec<_> = listed.iter().map(|letter| letter.source().unwrap()).collect();
    sources.sort_unstable();
    assert_eq!(sources, ["/billing", "/shop"]);
    assert!(listed.iter().all(|letter| letter.event_id == "1" && letter.attempts == 3));
    for refused in [
        letters.show("1").await.map(|_| ()),
        letters.retry("1").await.map(|_| ()),
        letters.discard("1").await.map(|_| ()),
    ] {
        let said = refused.unwrap_err();
        assert!(matches!(said, LetterError::Ambiguous { .. }), "{said:?}");
        let said = said.to_string();
        assert!(said.contains("/shop") && said.contains(&listed[0].position.to_string()), "{said}");
    }

    picky.fails.lock().unwrap().clear();
    let of = |source: &str| {
        listed.iter().find(|letter| letter.source() == Some(source)).unwrap().position
    };
    assert!(letters.retry(of("/shop")).await.unwrap());
    assert!(letters.discard(of("/billing")).await.unwrap());
    shop.until("select count(*) from effects", 2).await;
    started.stop().await;
    assert_eq!(letters.show(of("/shop")).await.unwrap().unwrap().state.as_str(), "retried");
    assert_eq!(letters.show(of("/billing")).await.unwrap().unwrap().state.as_str(), "discarded");
    assert!(letters.show("2").await.unwrap().is_none());
}

#[tokio::test]
async fn an_event_that_is_tried_again_shows_its_id_and_source_in_clear() {
    let shop = Shop::open().await;
    let picky = Picky::default();
    picky.fails.lock().unwrap().push("/shop");
    let config = ConsumerConfig {
        backoff: Duration::from_secs(20),
        max_backoff: Duration::from_secs(20),
        ..shop.config()
    };
    let started = shop.start(config, Router::new().on(picky));
    send(&shop, &[("ce-id", "order/1"), ("ce-source", "/shop")]).await;
    let clear = "select count(*) from pillarbox.inbox_failure \
                 where id = 'order/1' and source = '/shop' and event_id like '~%' and attempts = 1";
    shop.until(clear, 1).await;
    started.stop().await;
}
