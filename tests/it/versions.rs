//! Versions of an event on the whole way: an old producer, a new one, and one that is ahead of the consumer.

use std::time::Duration;

use async_nats::jetstream::stream;
use pillarbox::consumer::Consumer;
use pillarbox::{ConsumerConfig, Event, HandlerError, RawEvent, Received, Router, Tx};
use pillarbox_relay::{Relay, RelayConfig};
use pillarbox_testkit::{Nats, Scope, eventually, servers};
use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
struct OrderPlacedV1 {
    order: i64,
    euros: i64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order, version = 2, from = OrderPlacedV1)]
struct OrderPlacedV2 {
    order: i64,
    cents: i64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = number, version = 3, from = OrderPlacedV2)]
struct OrderPlaced {
    number: i64,
    cents: i64,
}

impl From<OrderPlacedV1> for OrderPlacedV2 {
    fn from(old: OrderPlacedV1) -> Self {
        Self { order: old.order, cents: 100 * old.euros }
    }
}

impl From<OrderPlacedV2> for OrderPlaced {
    fn from(old: OrderPlacedV2) -> Self {
        Self { number: old.order, cents: old.cents }
    }
}

async fn note(tx: &mut Tx, order: i64, cents: i64, raw: &RawEvent) -> Result<(), HandlerError> {
    sqlx::query("insert into charges (number, cents, version) values ($1, $2, $3)")
        .bind(order)
        .bind(cents)
        .bind(raw.version().map(i64::from))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// The consumer before its deployment.
async fn charge_v2(tx: &mut Tx, placed: Received<OrderPlacedV2>) -> Result<(), HandlerError> {
    note(tx, placed.order, placed.cents, placed.raw()).await
}

async fn charge_all_v2(tx: &mut Tx, all: &[Received<OrderPlacedV2>]) -> Result<(), HandlerError> {
    for placed in all {
        note(tx, placed.order, placed.cents, placed.raw()).await?;
    }
    Ok(())
}

/// And after it.
async fn charge(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    note(tx, placed.number, placed.cents, placed.raw()).await
}

async fn number(scope: &Scope, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(scope.pool()).await.unwrap()
}

async fn until(scope: &Scope, sql: &str, wanted: i64) {
    eventually(sql, DEADLINE, async || match number(scope, sql).await {
        found if found == wanted => Ok(Some(())),
        found => Err(format!("it is {found}, not {wanted}")),
    })
    .await
    .unwrap();
}

/// Publishes an order of each version, and checks what a consumer that knows versions 1 and 2 makes of them, before and
/// after it is deployed with version 3.
async fn deployed_late(before: Router) {
    let nats = Nats::start().await.unwrap();
    let scope = Scope::on(&servers().await.unwrap().postgres, &nats.url()).await.unwrap();
    pillarbox::outbox::migrate(scope.pool()).await.unwrap();
    pillarbox::inbox::migrate(scope.pool()).await.unwrap();
    sqlx::raw_sql("create table charges (number bigint, cents bigint, version bigint)")
        .execute(scope.pool())
        .await
        .unwrap();
    let stream = stream::Config {
        name: "ORDERS".into(),
        subjects: vec!["orders.>".into()],
        ..Default::default()
    };
    scope.jetstream().create_stream(stream).await.unwrap();
    let stop = CancellationToken::new();
    let relay = RelayConfig {
        database_url: scope.database_url().to_owned(),
        nats_url: scope.nats_url().to_owned(),
        ..RelayConfig::default()
    };
    let relay = tokio::spawn(Relay::new(relay).unwrap().run(stop.clone()));

    let mut tx = scope.pool().begin().await.unwrap();
    for (order, euros) in [(1, 3), (2, 4)] {
        pillarbox::outbox::publish(&mut tx, OrderPlacedV1 { order, euros }).await.unwrap();
    }
    pillarbox::outbox::publish(&mut tx, OrderPlacedV2 { order: 1, cents: 550 }).await.unwrap();
    pillarbox::outbox::publish(&mut tx, OrderPlaced { number: 3, cents: 725 }).await.unwrap();
    let wrong = RawEvent::builder("order.placed", "orders.placed").header("ce-typeversion", "two");
    pillarbox::outbox::publish(&mut tx, wrong.payload("{}").build().unwrap()).await.unwrap();
    tx.commit().await.unwrap();

    let consumer = |router: Router| {
        let config = ConsumerConfig {
            backoff: Duration::from_millis(5),
            takeover: Duration::from_secs(1),
            ..ConsumerConfig::new("ORDERS", "payments")
        };
        let made = Consumer::with_config(scope.nats().clone(), scope.pool().clone(), config);
        made.unwrap().router(router)
    };
    let letters = consumer(Router::new()).dead_letters();
    let (stop_old, old) = (CancellationToken::new(), consumer(before));
    let running = tokio::spawn(old.run(stop_old.clone()));
    until(&scope, "select count(*) from charges", 3).await;
    until(&scope, "select count(*) from pillarbox.inbox_dead_letter", 2).await;
    stop_old.cancel();
    running.await.unwrap().unwrap();
    let read = "select count(*) from charges where (number, cents, version) in
                ((1, 300, 1), (2, 400, 1), (1, 550, 2))";
    assert_eq!(number(&scope, read).await, 3);
    let mut all = letters.list(10).await.unwrap();
    all.sort_by(|one, other| one.error.cmp(&other.error));
    let said: Vec<_> = all.iter().map(|letter| &*letter.error).collect();
    assert!(said[0].contains("has version 3, and this program knows versions up to 2"), "{said:?}");
    assert!(said[1].contains("ce-typeversion must be a whole number from 1"), "{said:?}");
    assert!(all.iter().all(|letter| letter.attempts == 1), "neither is tried again: {all:?}");

    letters.retry_all().await.unwrap();
    let (stop_new, new) = (CancellationToken::new(), consumer(Router::new().on(charge)));
    let running = tokio::spawn(new.run(stop_new.clone()));
    until(&scope, "select count(*) from charges where (number, cents, version) = (3, 725, 3)", 1)
        .await;
    stop_new.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(number(&scope, "select count(*) from charges").await, 4);
    stop.cancel();
    relay.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_consumer_reads_older_versions_and_sets_a_newer_one_aside_until_it_is_deployed() {
    deployed_late(Router::new().on(charge_v2)).await;
}

#[tokio::test]
async fn a_batch_handler_reads_older_versions_and_sets_a_newer_one_aside_until_it_is_deployed() {
    deployed_late(Router::new().on_batch(charge_all_v2)).await;
}
