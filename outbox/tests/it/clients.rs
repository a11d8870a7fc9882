//! Events that are published through another client of Postgres than sqlx are the same events.

use pillarbox_event::{Context, Event, RawEvent};
use pillarbox_outbox::tokio_postgres as by_tokio_postgres;
use pillarbox_outbox::{Outbox, OutboxError, OutboxRow};
use pillarbox_testkit::{Scope, servers};
use sqlx::{AssertSqlSafe, Row};
use tokio_postgres::{Client, NoTls};

#[derive(Event, serde::Serialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
struct OrderPlaced {
    order: i64,
}

const EVENT: OrderPlaced = OrderPlaced { order: 42 };

async fn shop() -> Scope {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    sqlx::raw_sql("create table orders (id bigint)").execute(scope.pool()).await.unwrap();
    scope
}

async fn client(scope: &Scope) -> Client {
    let (client, connection) = tokio_postgres::connect(scope.database_url(), NoTls).await.unwrap();
    // It ends with the client.
    tokio::spawn(connection);
    client
}

/// The rows of the outbox: id, and everything that its writer says.
async fn rows(scope: &Scope) -> Vec<(String, String)> {
    let rows = sqlx::query(
        "select event_id::text, concat_ws('|', event_type, topic, key, headers, encode(payload, 'escape')) \
         from pillarbox.outbox order by position",
    );
    let rows = rows.fetch_all(scope.pool()).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// What a client does that has no module here.
async fn insert(outbox: &Outbox, row: &OutboxRow, scope: &Scope) {
    let written: uuid::Uuid =
        sqlx::query_scalar(AssertSqlSafe(outbox.insert_statement().to_owned()))
            .bind(row.event_id())
            .bind(row.event_type())
            .bind(row.topic())
            .bind(row.key())
            .bind(row.headers())
            .bind(&row.payload()[..])
            .fetch_one(scope.pool())
            .await
            .unwrap();
    assert_eq!(written, row.event_id());
}

#[tokio::test]
async fn every_client_writes_the_same_row_with_the_business_row_or_neither() {
    let scope = shop().await;
    let outbox = Outbox::new().source("/shop").unwrap();
    let handled = RawEvent::builder("cart.closed", "carts.closed")
        .header("ce-correlationid", "visit-7")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .build()
        .unwrap();
    let published = async {
        let mut tx = scope.pool().begin().await.unwrap();
        let by_sqlx = outbox.publish(&mut tx, &EVENT).await.unwrap();
        tx.commit().await.unwrap();
        let mut client = client(&scope).await;
        let mut ids = vec![by_sqlx.to_string()];
        for commit in [false, true] {
            let tx = client.transaction().await.unwrap();
            tx.execute("insert into orders (id) values (42)", &[]).await.unwrap();
            let id = by_tokio_postgres::publish_to(&outbox, &tx, &EVENT).await.unwrap();
            match commit {
                true => {
                    tx.commit().await.unwrap();
                    ids.push(id.to_string());
                }
                false => tx.rollback().await.unwrap(),
            }
        }
        let row = outbox.row(&EVENT).unwrap();
        insert(&outbox, &row, &scope).await;
        ids.push(row.id().to_string());
        ids
    };
    let ids = Context::of(&handled).scope(published).await;
    let rows = rows(&scope).await;
    assert_eq!(rows.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), ids);
    for (_, row) in &rows {
        assert_eq!(*row, rows[0].1);
    }
    for said in [
        "order.placed|orders.placed|42|",
        "\"ce-source\": \"/shop\"",
        "\"ce-correlationid\": \"visit-7\"",
        &format!("\"ce-causationid\": \"{}\"", handled.id()),
        "\"traceparent\": \"00-0af7651916cd43dd8448eb211c80319c-",
        "|{\"order\":42}",
    ] {
        assert!(rows[0].1.contains(said), "{said}: {}", rows[0].1);
    }
    let orders: i64 =
        sqlx::query_scalar("select count(*) from orders").fetch_one(scope.pool()).await.unwrap();
    assert_eq!(orders, 1, "no rolled-back row, and no event of one");
}

#[tokio::test]
async fn tokio_postgres_takes_another_schema_no_key_and_any_payload() {
    let scope = shop().await;
    for (_, sql) in pillarbox_outbox::migrations("sales").unwrap() {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(scope.pool()).await.unwrap();
    }
    let outbox = Outbox::new().schema("sales").unwrap();
    let event = RawEvent::builder("t", "a").payload(vec![0_u8, 255, b'\'']).build().unwrap();
    let mut client = client(&scope).await;
    let tx = client.transaction().await.unwrap();
    by_tokio_postgres::publish_to(&outbox, &tx, event).await.unwrap();
    tx.commit().await.unwrap();
    let same: i64 = sqlx::query_scalar(
        "select count(*) from sales.outbox where key is null and headers = '{}' and payload = '\\x00ff27'",
    )
    .fetch_one(scope.pool())
    .await
    .unwrap();
    assert_eq!(same, 1);
    assert!(rows(&scope).await.is_empty());
}

#[tokio::test]
async fn a_failure_names_the_event_and_keeps_what_the_client_said() {
    // Nobody has made the tables.
    let scope = servers().await.unwrap().scope().await.unwrap();
    let mut client = client(&scope).await;
    let tx = client.transaction().await.unwrap();
    let refused = by_tokio_postgres::publish(&tx, &EVENT).await.unwrap_err();
    assert!(matches!(refused, OutboxError::Client { .. }), "{refused:?}");
    let text = format!("{refused:?}");
    assert!(text.contains("order.placed") && text.contains("pillarbox.outbox"), "{text}");
}
