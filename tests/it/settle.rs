//! Tests of a service: a handler in a transaction that is rolled back, and waiting until nothing is left to do.

use std::time::Duration;

use pillarbox::relay::{Relay, RelayConfig};
use pillarbox::testing::{self, Settle};
use pillarbox::{Consumer, Event, HandlerError, Received, Router, Tx, consumer, inbox, outbox};
use pillarbox_testkit::{Scope, isolated};
use tokio_util::sync::{CancellationToken, DropGuard};

const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Event, Debug, serde::Serialize, serde::Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
struct OrderPlaced {
    order: i64,
}

#[derive(Event, Debug, serde::Serialize, serde::Deserialize)]
#[event(type = "payment.taken", topic = "orders.paid", key = order)]
struct PaymentTaken {
    order: i64,
}

async fn charge(tx: &mut Tx, placed: OrderPlaced) -> Result<(), HandlerError> {
    if placed.order < 0 {
        return Err(HandlerError::permanent("no order has a negative number"));
    }
    if placed.order == 13 {
        return Err(HandlerError::outage("the provider is away"));
    }
    outbox::publish(tx, PaymentTaken { order: placed.order }).await?;
    Ok(())
}

/// Takes longer than two looks, so that a wait that forgets it ends too early.
async fn mail(tx: &mut Tx, paid: PaymentTaken) -> Result<(), HandlerError> {
    sqlx::query("select pg_sleep(0.2)").execute(&mut **tx).await?;
    sqlx::query("insert into mails values ($1)").bind(paid.order).execute(&mut **tx).await?;
    Ok(())
}

async fn shop() -> Scope {
    let scope = isolated().await.unwrap();
    outbox::migrate(scope.pool()).await.unwrap();
    inbox::migrate(scope.pool()).await.unwrap();
    sqlx::raw_sql("create table mails (id bigint)").execute(scope.pool()).await.unwrap();
    let stream = consumer::streams::StreamSpec::fan_out("ORDERS", ["orders.>"]);
    stream.ensure(&scope.jetstream()).await.unwrap();
    scope
}

fn consumers(scope: &Scope) -> [Consumer; 2] {
    let consumer = |name: &str| {
        Consumer::new(scope.nats().clone(), scope.pool().clone(), "ORDERS", name).unwrap()
    };
    [consumer("payments").on(charge), consumer("mails").on(mail)]
}

fn start_relay(scope: &Scope) -> DropGuard {
    let stop = CancellationToken::new();
    let config = RelayConfig {
        database_url: scope.database_url().to_owned(),
        nats_url: scope.nats_url().to_owned(),
        ..RelayConfig::default()
    };
    tokio::spawn(Relay::new(config).unwrap().run(stop.clone()));
    stop.drop_guard()
}

fn start(consumers: &[Consumer]) -> DropGuard {
    let stop = CancellationToken::new();
    for consumer in consumers {
        tokio::spawn(consumer.clone().run(stop.clone()));
    }
    stop.drop_guard()
}

async fn place(scope: &Scope, order: i64) {
    let mut tx = scope.pool().begin().await.unwrap();
    outbox::publish(&mut tx, OrderPlaced { order }).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_test_gets_what_a_handler_published_and_nothing_stays() {
    let scope = shop().await;
    let placed = Received::for_test(OrderPlaced { order: 7 }).build().unwrap();
    for _ in 0..2 {
        let router = Router::new().on(charge).on(mail);
        let published = testing::handle(scope.pool(), &router, &placed).await.unwrap();
        let taken = published.only::<PaymentTaken>().unwrap();
        assert_eq!((taken.order, taken.key(), taken.topic()), (7, Some("7"), "orders.paid"));
        assert_eq!(taken.raw().causation_id(), Some(placed.id().as_str()));
    }
    let refused = Received::for_test(OrderPlaced { order: -1 }).build().unwrap();
    let error =
        testing::handle(scope.pool(), &Router::new().on(charge), &refused).await.unwrap_err();
    assert!(
        std::error::Error::source(&error).unwrap().to_string().contains("negative"),
        "{error:?}"
    );
    let rows: i64 = sqlx::query_scalar("select count(*) from pillarbox.outbox")
        .fetch_one(scope.pool())
        .await
        .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_has_settled_when_every_event_and_what_its_handlers_published_is_handled() {
    let scope = shop().await;
    let consumers = consumers(&scope);
    let (_relay, _consumers) = (start_relay(&scope), start(&consumers));
    let settle = Settle::new().outbox(scope.pool()).consumer(&consumers[0]).consumer(&consumers[1]);
    for round in 1..=5 {
        for order in 100 * round..100 * round + 20 {
            place(&scope, order).await;
        }
        settle.clone().within(DEADLINE).await.unwrap();
        let mails: i64 =
            sqlx::query_scalar("select count(*) from mails").fetch_one(scope.pool()).await.unwrap();
        assert_eq!(mails, 20 * round, "in round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stuck_is_told() {
    let scope = shop().await;
    let consumers = consumers(&scope);
    let settle = Settle::new().outbox(scope.pool()).consumer(&consumers[0]).consumer(&consumers[1]);
    let short = Duration::from_millis(500);
    // No relay runs, and no consumer has ever run.
    place(&scope, 13).await;
    let said = settle.clone().within(short).await.unwrap_err();
    let text = said.to_string();
    assert!(text.contains("/pillarbox, relay default: 1 events are not shipped"), "{text}");
    assert!(text.contains("this relay has never run") && !said.by_letters, "{text}");
    assert!(text.contains("consumer payments") && text.contains("consumer mails"), "{text}");
    // The relay ships, and the consumer runs but cannot handle it: its provider is away.
    let (_relay, _consumers) = (start_relay(&scope), start(&consumers));
    let in_retry = async || {
        let text = settle.clone().within(short).await.unwrap_err().to_string();
        if text.contains("1 are in retry") { Ok(Some(text)) } else { Err(text) }
    };
    let text =
        pillarbox_testkit::eventually("an event in retry", DEADLINE, in_retry).await.unwrap();
    assert!(
        text.contains("consumer payments of stream ORDERS: 0 events are not delivered, 1 are"),
        "{text}"
    );
    assert!(text.contains("the provider is away") && !text.contains("consumer mails"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_ends_the_wait_at_once_unless_it_is_expected() {
    let scope = shop().await;
    let consumers = consumers(&scope);
    let (_relay, _consumers) = (start_relay(&scope), start(&consumers));
    place(&scope, -5).await;
    let settle = Settle::new().outbox(scope.pool()).consumer(&consumers[0]);
    let said = settle.clone().within(DEADLINE * 10).await.unwrap_err();
    let text = said.to_string();
    assert!(said.by_letters && text.contains("consumer payments"), "{text}");
    assert!(text.contains("order.placed, permanent): the handler failed: no order"), "{text}");
    settle.with_letters().within(DEADLINE).await.unwrap();
}

#[tokio::test]
async fn no_wait_is_too_long_for_the_clock() {
    Settle::new().within(Duration::MAX).await.unwrap();
}
