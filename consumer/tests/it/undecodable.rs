//! Messages that can be parsed and are no events: their letters are where they were, and claim no event's id.

use crate::support::{Shop, record};
use async_nats::HeaderMap;
use async_nats::jetstream;
use pillarbox_consumer::ConsumerConfig;
use pillarbox_event::RawEvent;
use pillarbox_inbox::{DeadLetters, HandlerError, Received, Router, Tx};

async fn send(shop: &Shop, headers: &[(&str, &str)], payload: &'static str) {
    let mut all = HeaderMap::new();
    for (name, value) in headers {
        all.append(*name, *value);
    }
    shop.send_raw(&format!("{}.placed", shop.scope.prefix()), all, payload).await;
}

/// Refused, for the tab.
async fn send_with_tab(shop: &Shop, id: &str) {
    let headers = [("ce-id", id), ("ce-type", "order.placed"), ("x-note", "a\tb")];
    send(shop, &headers, r#"{"order": 1, "step": 1}"#).await;
}

async fn send_corrected(shop: &Shop, id: &str) {
    let headers = [("ce-id", id), ("ce-type", "order.placed"), ("x-note", "a b")];
    send(shop, &headers, r#"{"order": 1, "step": 1}"#).await;
}

fn letters(shop: &Shop) -> DeadLetters {
    DeadLetters::new(shop.pool().clone(), "payments").unwrap()
}

#[tokio::test]
async fn each_unreadable_message_is_a_letter_whatever_id_it_claims() {
    let shop = Shop::open().await;
    let (started, watch) = shop.start_on(shop.pool(), shop.config(), Router::new().on(record));
    for _ in 0..3 {
        send_with_tab(&shop, "7").await;
    }
    send(&shop, &[("ce-id", "7"), ("ce-type", "t"), ("ce-specversion", "0.3")], "{}").await;
    send(&shop, &[("Nats-Msg-Id", "7"), ("content-type", "text/plain")], "no event").await;
    send(&shop, &[], "no header").await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 6).await;
    shop.drained().await;
    assert_eq!(watch.get().totals.dead_letters, 6);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox").await, 0, "they claim no id");

    // Delivered again, by a durable that is made anew: they are there.
    started.stop().await;
    let stream = shop.scope.jetstream().get_stream(&shop.stream).await.unwrap();
    stream.delete_consumer("payments").await.unwrap();
    let (started, watch) = shop.start_on(shop.pool(), shop.config(), Router::new().on(record));
    send(&shop, &[], "one more").await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 7).await;
    shop.drained().await;
    assert_eq!(watch.get().totals.dead_letters, 1, "what is stored is counted");
    started.stop().await;
    let first = format!("{}:1", shop.stream);
    let found = letters(&shop).show(&first).await.unwrap().unwrap();
    assert_eq!((found.event_id, found.headers["x-note"].as_str()), (first, "a\tb"));
    let claimed = letters(&shop).show("7").await.unwrap_err();
    assert!(claimed.to_string().starts_with("5 dead letters have the id \"7\""), "{claimed}");
}

#[tokio::test]
async fn a_message_that_is_sent_again_corrected_under_its_id_is_handled() {
    let shop = Shop::open().await;
    let started = shop.start(shop.config(), Router::new().on(record));
    for (number, (id, discard)) in (1..).zip([("7", false), ("8", true)]) {
        send_with_tab(&shop, id).await;
        shop.until("select count(*) from pillarbox.inbox_dead_letter", number).await;
        let letters = letters(&shop);
        let letter = letters.list(10).await.unwrap().pop().unwrap();
        if discard {
            assert!(letters.discard(&letter.event_id).await.unwrap());
        }
        send_corrected(&shop, id).await;
        let handled = format!("select count(*) from effects where event_id = '{id}'");
        shop.until(&handled, 1).await;
        shop.drained().await;
        assert!(!letters.retry(&letter.event_id).await.unwrap(), "it is no event");
    }
    started.stop().await;
}

#[tokio::test]
async fn an_operator_finds_an_unreadable_message_by_the_id_that_it_claims_too() {
    let shop = Shop::open().await;
    let started = shop.start(shop.config(), Router::new().on(record));
    send_with_tab(&shop, "order-7").await;
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 1).await;
    let found = letters(&shop).show("order-7").await.unwrap().unwrap();
    assert_eq!(found.event_id, format!("{}:1", shop.stream));
    assert!(letters(&shop).discard("order-7").await.unwrap());
    started.stop().await;
}

#[tokio::test]
async fn what_was_not_stored_is_not_acknowledged() {
    let shop = Shop::open().await;
    let swallow = "create function swallow() returns trigger language plpgsql as 'begin return null; end'; \
                   create trigger swallow before insert on pillarbox.inbox_dead_letter \
                   for each row execute function swallow()";
    sqlx::raw_sql(swallow).execute(shop.pool()).await.unwrap();
    async fn refuse(_: &mut Tx, event: Received<RawEvent>) -> Result<(), HandlerError> {
        match event.id().as_str() {
            "bad" => Err(HandlerError::permanent("no such account")),
            _ => Ok(()),
        }
    }
    let (started, watch) = shop.start_on(shop.pool(), shop.config(), Router::new().on(refuse));
    send_with_tab(&shop, "7").await;
    send(&shop, &[("ce-id", "bad"), ("ce-type", "t")], "{}").await;
    for id in ["1", "2", "3"] {
        send(&shop, &[("ce-id", id), ("ce-type", "t")], "{}").await;
    }
    let handled = "select count(*) from pillarbox.inbox where event_id in ('1', '2', '3')";
    shop.until(handled, 3).await;
    assert_eq!(watch.get().totals.dead_letters, 0);
    sqlx::raw_sql("drop trigger swallow on pillarbox.inbox_dead_letter")
        .execute(shop.pool())
        .await
        .unwrap();
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 2).await;
    shop.drained().await;
    started.stop().await;
}

#[tokio::test]
async fn a_letter_is_handled_by_the_consumer_of_the_stream_that_it_came_from() {
    let shop = Shop::open().await;
    let other = format!("{}_RETURNS", shop.stream);
    let subjects = vec![format!("{}_returns.>", shop.scope.prefix())];
    let config = jetstream::stream::Config { name: other.clone(), subjects, ..Default::default() };
    shop.scope.jetstream().create_stream(config).await.unwrap();
    sqlx::raw_sql(
        "create table accounts (ready boolean); create table routed (router text, event_id text)",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    async fn route(tx: &mut Tx, event: Received<RawEvent>, name: &str) -> Result<(), HandlerError> {
        let ready: i64 =
            sqlx::query_scalar("select count(*) from accounts").fetch_one(&mut **tx).await?;
        if ready == 0 {
            return Err(HandlerError::permanent("no such account"));
        }
        sqlx::query("insert into routed values ($1, $2)")
            .bind(name)
            .bind(event.id().as_str())
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
    async fn orders(tx: &mut Tx, event: Received<RawEvent>) -> Result<(), HandlerError> {
        route(tx, event, "orders").await
    }
    async fn returns(tx: &mut Tx, event: Received<RawEvent>) -> Result<(), HandlerError> {
        route(tx, event, "returns").await
    }
    let of_orders = shop.start(shop.config(), Router::new().on(orders));
    let config = ConsumerConfig { stream: other.clone(), ..shop.config() };
    let of_returns = shop.start(config.clone(), Router::new().on(returns));
    for number in 0..10 {
        let id = format!("o{number}");
        send(&shop, &[("ce-id", &id), ("ce-type", "t"), ("ce-partitionkey", "k")], "{}").await;
        let mut headers = HeaderMap::new();
        headers.insert("ce-id", format!("r{number}"));
        headers.insert("ce-type", "t");
        headers.insert("ce-partitionkey", "k");
        shop.send_raw(&format!("{}_returns.r", shop.scope.prefix()), headers, "{}").await;
    }
    shop.until("select count(*) from pillarbox.inbox_dead_letter", 20).await;
    of_returns.stop().await;
    sqlx::raw_sql("insert into accounts values (true)").execute(shop.pool()).await.unwrap();
    assert_eq!(letters(&shop).retry_all().await.unwrap(), 20);
    // Those of the other stream wait for their consumer, and hold up nothing here.
    shop.until("select count(*) from routed", 10).await;
    let of_returns = shop.start(config, Router::new().on(returns));
    shop.until("select count(*) from routed", 20).await;
    of_orders.stop().await;
    of_returns.stop().await;
    let right = "select count(*) from routed where left(event_id, 1) = left(router, 1)";
    assert_eq!(shop.number(right).await, 20);
}
