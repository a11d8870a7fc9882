//! What a transaction has published, as its test sees it before the rollback.

use std::time::{Duration, SystemTime};

use pillarbox_event::{Context, Event, RawEvent};
use pillarbox_outbox::testing::published;
use pillarbox_outbox::{Outbox, cancel, publish, publish_all, publish_in};
use pillarbox_testkit::{Scope, servers};
use sqlx::Connection;

#[derive(Event, Debug, serde::Serialize, serde::Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
struct OrderPlaced {
    order: i64,
}

#[derive(Event, Debug, serde::Serialize, serde::Deserialize)]
#[event(type = "payment.overdue", topic = "payments.overdue")]
struct PaymentOverdue {
    order: i64,
}

async fn migrated() -> Scope {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    scope
}

#[tokio::test]
async fn a_test_sees_what_its_transaction_has_published_and_nothing_of_others() {
    let scope = migrated().await;
    let (mut other, mut tx) =
        (scope.pool().begin().await.unwrap(), scope.pool().begin().await.unwrap());
    publish(&mut other, OrderPlaced { order: 1 }).await.unwrap();
    publish_in(&mut other, PaymentOverdue { order: 1 }, Duration::from_secs(9)).await.unwrap();
    published(&mut tx).await.unwrap().nothing().unwrap();
    let cause = RawEvent::builder("a", "b").build().unwrap();
    let id = Context::of(&cause).scope(publish(&mut tx, OrderPlaced { order: 7 })).await.unwrap();
    // Committed meanwhile, and so visible to this transaction.
    other.commit().await.unwrap();
    let seen = published(&mut tx).await.unwrap();
    let placed = seen.only::<OrderPlaced>().unwrap();
    assert_eq!((placed.order, placed.key(), placed.topic()), (7, Some("7"), "orders.placed"));
    assert_eq!((placed.raw().id(), placed.due_at()), (&id, None));
    assert_eq!(placed.raw().causation_id(), Some(cause.id().as_str()));
    tx.rollback().await.unwrap();
    let mut next = scope.pool().begin().await.unwrap();
    published(&mut next).await.unwrap().nothing().unwrap();
}

#[tokio::test]
async fn savepoints_schedules_and_plain_sql_are_seen_and_what_was_taken_back_is_not() {
    let scope = migrated().await;
    let mut tx = scope.pool().begin().await.unwrap();
    let mut inner = tx.begin().await.unwrap();
    publish_in(&mut inner, PaymentOverdue { order: 2 }, Duration::from_secs(900)).await.unwrap();
    publish(&mut inner, OrderPlaced { order: 2 }).await.unwrap();
    inner.commit().await.unwrap();
    let mut undone = tx.begin().await.unwrap();
    publish_in(&mut undone, PaymentOverdue { order: 3 }, Duration::from_secs(900)).await.unwrap();
    publish(&mut undone, OrderPlaced { order: 3 }).await.unwrap();
    undone.rollback().await.unwrap();
    let gone = publish_in(&mut tx, PaymentOverdue { order: 4 }, Duration::from_secs(1)).await;
    assert!(cancel(&mut tx, &gone.unwrap()).await.unwrap());
    sqlx::raw_sql(
        "insert into pillarbox.outbox (event_type, topic, key, headers, payload) \
         values ('order.placed', 'orders.placed', '5', '{\"tenant\": \"t\"}', '{\"order\": 5}')",
    )
    .execute(&mut *tx)
    .await
    .unwrap();
    let seen = published(&mut tx).await.unwrap();
    let orders: Vec<i64> =
        seen.all::<OrderPlaced>().unwrap().iter().map(|placed| placed.order).collect();
    assert_eq!(orders, [2, 5]);
    assert_eq!(seen.events()[1].raw().header("tenant"), Some("t"));
    let overdue = seen.one::<PaymentOverdue>().unwrap();
    let left = overdue.due_at().unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(overdue.order == 2 && (800..=900).contains(&left.as_secs()), "{left:?}");
    assert_eq!(seen.events().len(), 3);
}

#[tokio::test]
async fn what_is_not_as_wanted_is_an_error_that_lists_what_was_published() {
    let scope = migrated().await;
    let mut tx = scope.pool().begin().await.unwrap();
    let seen = published(&mut tx).await.unwrap();
    let said = seen.one::<OrderPlaced>().unwrap_err().to_string();
    assert_eq!(said, "wanted one event of type \"order.placed\", but nothing was published");
    publish_all(&mut tx, [OrderPlaced { order: 1 }, OrderPlaced { order: 2 }]).await.unwrap();
    let seen = published(&mut tx).await.unwrap();
    let said = seen.one::<OrderPlaced>().unwrap_err().to_string();
    assert!(
        said.contains("these 2 events") && said.contains("key Some(\"2\"): {\"order\":2}"),
        "{said}"
    );
    assert!(seen.one::<PaymentOverdue>().is_err());
    assert!(seen.nothing().is_err());
    publish(&mut tx, PaymentOverdue { order: 1 }).await.unwrap();
    let seen = published(&mut tx).await.unwrap();
    seen.one::<PaymentOverdue>().unwrap();
    assert!(seen.only::<PaymentOverdue>().is_err(), "it is not the only one");
    let no_json = RawEvent::builder(PaymentOverdue::TYPE, "a.b").payload("no").build().unwrap();
    publish(&mut tx, no_json).await.unwrap();
    let said = published(&mut tx).await.unwrap().all::<PaymentOverdue>().unwrap_err().to_string();
    assert!(said.contains("payment.overdue"), "{said}");
}

#[tokio::test]
async fn an_outbox_in_another_schema_is_read_there() {
    let scope = migrated().await;
    let outbox = Outbox::new().schema("shop").unwrap();
    outbox.migrate(scope.pool()).await.unwrap();
    let mut tx = scope.pool().begin().await.unwrap();
    outbox.publish(&mut tx, OrderPlaced { order: 7 }).await.unwrap();
    outbox.published(&mut tx).await.unwrap().only::<OrderPlaced>().unwrap();
    published(&mut tx).await.unwrap().nothing().unwrap();
}
