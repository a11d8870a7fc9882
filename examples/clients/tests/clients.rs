//! On a real Postgres: each client writes the row that sqlx writes, with the business row or not at all.
#![allow(clippy::unwrap_used, clippy::panic)]

use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use pillarbox_clients::{diesel_async as by_diesel, sea_orm as by_sea_orm};
use pillarbox_event::{Context, Event, RawEvent};
use pillarbox_testkit::{Scope, servers};
use sea_orm::{ConnectionTrait, Database, TransactionTrait};
use sqlx::Row;

#[derive(Event, serde::Serialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
struct OrderPlaced {
    order: i64,
}

const EVENT: OrderPlaced = OrderPlaced { order: 42 };
const ORDER: &str = "insert into orders (id) values (42)";

async fn shop() -> Scope {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    sqlx::raw_sql("create table orders (id bigint)").execute(scope.pool()).await.unwrap();
    scope
}

/// The rows of the outbox: id, and everything that its writer says.
async fn rows(scope: &Scope) -> Vec<(String, String)> {
    let rows = sqlx::query(
        "select event_id::text, concat_ws('|', event_type, topic, coalesce(key, 'none'), headers, \
         encode(payload, 'escape')) from pillarbox.outbox order by position",
    );
    let rows = rows.fetch_all(scope.pool()).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn orders(scope: &Scope) -> i64 {
    sqlx::query_scalar("select count(*) from orders").fetch_one(scope.pool()).await.unwrap()
}

/// The event of which each of these events is a consequence.
fn handled() -> RawEvent {
    RawEvent::builder("cart.closed", "carts.closed")
        .header("ce-correlationid", "visit-7")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .build()
        .unwrap()
}

/// The row that sqlx writes, to compare with.
async fn by_sqlx(scope: &Scope) -> String {
    let mut tx = scope.pool().begin().await.unwrap();
    pillarbox_outbox::publish(&mut tx, &EVENT).await.unwrap();
    tx.commit().await.unwrap();
    rows(scope).await.pop().unwrap().1
}

/// In the order in which they were written: sqlx's event, and the one of another client.
async fn assert_same(scope: &Scope, id: &str, handled: &RawEvent) {
    let rows = rows(scope).await;
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert_eq!(rows[1].0, id);
    assert_eq!(rows[1].1, rows[0].1);
    for said in ["visit-7", handled.id().as_str(), "0af7651916cd43dd8448eb211c80319c"] {
        assert!(rows[1].1.contains(said), "{said}: {}", rows[1].1);
    }
    assert_eq!(orders(scope).await, 1);
}

async fn diesel_order(
    connection: &mut AsyncPgConnection,
    fails: bool,
) -> Result<String, by_diesel::NotPublished> {
    let place = async |connection: &mut AsyncPgConnection| {
        diesel::sql_query(ORDER).execute(connection).await?;
        let id = by_diesel::publish(connection, &EVENT).await?;
        match fails {
            true => Err(diesel::result::Error::RollbackTransaction.into()),
            false => Ok(id.to_string()),
        }
    };
    connection.transaction(place).await
}

#[tokio::test]
async fn diesel_async_writes_the_row_that_sqlx_writes_or_nothing() {
    let (scope, handled) = (shop().await, handled());
    let id = Context::of(&handled)
        .scope(async {
            by_sqlx(&scope).await;
            let mut connection = AsyncPgConnection::establish(scope.database_url()).await.unwrap();
            diesel_order(&mut connection, true).await.unwrap_err();
            diesel_order(&mut connection, false).await.unwrap()
        })
        .await;
    assert_same(&scope, &id, &handled).await;
}

#[tokio::test]
async fn diesel_async_refuses_an_event_outside_of_a_transaction() {
    let scope = shop().await;
    let mut connection = AsyncPgConnection::establish(scope.database_url()).await.unwrap();
    let refused = by_diesel::publish(&mut connection, &EVENT).await.unwrap_err();
    assert!(matches!(refused, by_diesel::NotPublished::NoTransaction), "{refused:?}");
    assert!(rows(&scope).await.is_empty());
}

#[tokio::test]
async fn sea_orm_writes_the_row_that_sqlx_writes_or_nothing() {
    let (scope, handled) = (shop().await, handled());
    let id = Context::of(&handled)
        .scope(async {
            by_sqlx(&scope).await;
            let database = Database::connect(scope.database_url()).await.unwrap();
            let mut id = String::new();
            for commit in [false, true] {
                let tx = database.begin().await.unwrap();
                tx.execute_unprepared(ORDER).await.unwrap();
                id = by_sea_orm::publish(&tx, &EVENT).await.unwrap().to_string();
                match commit {
                    true => tx.commit().await.unwrap(),
                    false => tx.rollback().await.unwrap(),
                }
            }
            id
        })
        .await;
    assert_same(&scope, &id, &handled).await;
}

#[tokio::test]
async fn no_key_and_any_payload_arrive_as_they_are() {
    let scope = shop().await;
    let event = || RawEvent::builder("t", "a").payload(vec![0_u8, 255, b'\'']).build().unwrap();
    let mut connection = AsyncPgConnection::establish(scope.database_url()).await.unwrap();
    let publish =
        async |connection: &mut AsyncPgConnection| by_diesel::publish(connection, event()).await;
    connection.transaction(publish).await.unwrap();
    let database = Database::connect(scope.database_url()).await.unwrap();
    let tx = database.begin().await.unwrap();
    by_sea_orm::publish(&tx, event()).await.unwrap();
    tx.commit().await.unwrap();
    let same: i64 = sqlx::query_scalar(
        "select count(*) from pillarbox.outbox where key is null and headers = '{}' and payload = '\\x00ff27'",
    )
    .fetch_one(scope.pool())
    .await
    .unwrap();
    assert_eq!(same, 2);
}

#[tokio::test]
async fn a_failure_keeps_what_the_client_said() {
    // Nobody has made the tables.
    let scope = servers().await.unwrap().scope().await.unwrap();
    let database = Database::connect(scope.database_url()).await.unwrap();
    let tx = database.begin().await.unwrap();
    let refused = by_sea_orm::publish(&tx, &EVENT).await.unwrap_err().to_string();
    assert!(refused.contains("pillarbox.outbox"), "{refused}");
    let mut connection = AsyncPgConnection::establish(scope.database_url()).await.unwrap();
    let publish =
        async |connection: &mut AsyncPgConnection| by_diesel::publish(connection, &EVENT).await;
    let refused = connection.transaction(publish).await.unwrap_err().to_string();
    assert!(refused.contains("pillarbox.outbox"), "{refused}");
}
