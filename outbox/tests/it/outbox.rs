//! What is written to the outbox, and when.

use pillarbox_event::{Context, Event, RawEvent};
use pillarbox_outbox::{Outbox, OutboxError, publish, publish_all, publish_at, publish_in};
use pillarbox_testkit::{Scope, servers};
use sqlx::{PgPool, Row};

#[derive(Event, serde::Serialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
struct OrderPlaced {
    order: i64,
}

async fn migrated() -> Scope {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    scope
}

async fn count(pool: &PgPool) -> i64 {
    sqlx::query("select count(*) from pillarbox.outbox").fetch_one(pool).await.unwrap().get(0)
}

#[tokio::test]
async fn a_committed_event_is_there_and_a_rolled_back_one_is_not() {
    let scope = migrated().await;
    let mut tx = scope.pool().begin().await.unwrap();
    let id = publish(&mut tx, OrderPlaced { order: 42 }).await.unwrap();
    assert_eq!(count(scope.pool()).await, 0, "nothing shows before the commit");
    tx.commit().await.unwrap();

    let mut tx = scope.pool().begin().await.unwrap();
    publish(&mut tx, &OrderPlaced { order: 43 }).await.unwrap();
    tx.rollback().await.unwrap();

    let row = sqlx::query("select event_id::text, event_type, topic, key, headers::text, payload from pillarbox.outbox")
        .fetch_one(scope.pool())
        .await
        .unwrap();
    let text = |i: usize| row.get::<String, _>(i);
    assert_eq!(
        [text(0), text(1), text(2), text(3), text(4)],
        [id.to_string(), "order.placed".into(), "orders.placed".into(), "42".into(), "{}".into()]
    );
    assert_eq!(row.get::<Vec<u8>, _>(5), br#"{"order":42}"#);
}

#[tokio::test]
async fn many_events_are_written_in_their_order() {
    let scope = migrated().await;
    let mut tx = scope.pool().begin().await.unwrap();
    let ids = publish_all(
        &mut tx,
        (0..500).map(|order| RawEvent::encode(&OrderPlaced { order }).unwrap()),
    )
    .await
    .unwrap();
    assert!(publish_all(&mut tx, Vec::<RawEvent>::new()).await.unwrap().is_empty());
    tx.commit().await.unwrap();
    let written: Vec<String> =
        sqlx::query("select event_id::text from pillarbox.outbox order by position")
            .fetch_all(scope.pool())
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
    assert_eq!(written, ids.iter().map(ToString::to_string).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_row_carries_its_writers_transaction_id() {
    let scope = migrated().await;
    let mut tx = scope.pool().begin().await.unwrap();
    let txid: String =
        sqlx::query("select pg_current_xact_id()::text").fetch_one(&mut *tx).await.unwrap().get(0);
    // Also in a savepoint, because the whole transaction decides about visibility.
    sqlx::raw_sql("savepoint s").execute(&mut *tx).await.unwrap();
    publish(&mut tx, &OrderPlaced { order: 1 }).await.unwrap();
    tx.commit().await.unwrap();
    let row: String = sqlx::query("select txid::text from pillarbox.outbox")
        .fetch_one(scope.pool())
        .await
        .unwrap()
        .get(0);
    assert_eq!(row, txid);
}

#[tokio::test]
async fn a_rows_transaction_id_is_taken_before_its_position() {
    let scope = migrated().await;
    // Defaults are evaluated in the order of the columns.
    let columns: Vec<String> = sqlx::query(
        "select attname::text from pg_attribute where attrelid = 'pillarbox.outbox'::regclass and attnum > 0 order by attnum limit 2",
    )
    .fetch_all(scope.pool())
    .await
    .unwrap()
    .iter()
    .map(|row| row.get(0))
    .collect();
    assert_eq!(columns, ["txid", "position"]);
}

#[tokio::test]
async fn any_language_may_insert_and_an_empty_topic_or_type_is_refused() {
    let scope = migrated().await;
    let insert = |event_type: &str, topic: &str| {
        let query = sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, key, headers, payload) values ($1, $2, 'k', '{\"x\": \"y\"}', '{}')",
        );
        query.bind(event_type.to_owned()).bind(topic.to_owned()).execute(scope.pool())
    };
    insert("order.placed", "orders.placed").await.unwrap();
    for (event_type, topic) in [("", "orders.placed"), ("order.placed", "")] {
        let error = insert(event_type, topic).await.unwrap_err();
        assert!(
            error.as_database_error().is_some_and(|error| error.is_check_violation()),
            "{error}"
        );
    }
    assert_eq!(count(scope.pool()).await, 1);
}

#[tokio::test]
async fn what_a_handler_publishes_says_what_caused_it() {
    let scope = migrated().await;
    let cause = RawEvent::builder("order.placed", "orders.placed")
        .header("x-tenant", "acme")
        .build()
        .unwrap();
    let outbox = Outbox::new().source("/shop/payments").unwrap();
    Context::of(&cause)
        .scope(async {
            let mut tx = scope.pool().begin().await.unwrap();
            outbox.publish(&mut tx, &OrderPlaced { order: 1 }).await.unwrap();
            tx.commit().await.unwrap();
        })
        .await;
    let row = sqlx::query("select headers ->> 'ce-causationid', headers ->> 'ce-correlationid', headers ->> 'ce-source' from pillarbox.outbox")
        .fetch_one(scope.pool())
        .await
        .unwrap();
    let id = cause.id().to_string();
    assert_eq!(
        [row.get::<String, _>(0), row.get(1), row.get(2)],
        [id.clone(), id, "/shop/payments".into()]
    );
}

#[tokio::test]
async fn a_refused_event_leaves_the_transaction_usable() {
    let scope = migrated().await;
    let mut tx = scope.pool().begin().await.unwrap();
    let foreign = RawEvent::builder("t", "a").id("not a uuid").build().unwrap();
    assert!(matches!(publish(&mut tx, foreign).await, Err(OutboxError::Id { .. })));
    publish(&mut tx, &OrderPlaced { order: 1 }).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(count(scope.pool()).await, 1);
}

/// An event whose type has a pattern, with a topic that a mistake gave it.
#[derive(serde::Serialize)]
struct DoorOpened {
    topic: &'static str,
}

impl Event for DoorOpened {
    const TYPE: &'static str = "door.opened";
    const TOPIC: &'static str = "doors.*.opened";

    fn topic(&self) -> std::borrow::Cow<'_, str> {
        self.topic.into()
    }
}

#[tokio::test]
async fn a_topic_that_does_not_match_its_types_pattern_is_refused_with_both_names() {
    let scope = migrated().await;
    let mut tx = scope.pool().begin().await.unwrap();
    for topic in ["windows.1.opened", "doors.opened", "doors.1.2.opened", "doors.1.closed"] {
        let (door, minute) = (DoorOpened { topic }, std::time::Duration::from_secs(60));
        let tomorrow = std::time::SystemTime::now() + 1_440 * minute;
        for refused in [
            publish(&mut tx, &door).await.map(|_| ()),
            publish_all(&mut tx, [&DoorOpened { topic: "doors.1.opened" }, &door])
                .await
                .map(|_| ()),
            publish_in(&mut tx, &door, minute).await.map(|_| ()),
            publish_at(&mut tx, &door, tomorrow).await.map(|_| ()),
        ] {
            let said = refused.unwrap_err().to_string();
            let names = [&format!("{topic:?}"), "\"doors.*.opened\"", "door.opened"];
            assert!(names.iter().all(|name| said.contains(*name)), "{said}");
        }
    }
    publish(&mut tx, DoorOpened { topic: "doors.1.opened" }).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(count(scope.pool()).await, 1, "only the right one is written");
    let scheduled = "select count(*) from pillarbox.outbox_scheduled";
    let scheduled: i64 = sqlx::query_scalar(scheduled).fetch_one(scope.pool()).await.unwrap();
    assert_eq!(scheduled, 0);
}
