//! The number of round trips that a writer waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::turns::count_turns;
use pillarbox_event::RawEvent;
use pillarbox_outbox::{Tx, publish, publish_all, publish_with_commit};
use pillarbox_testkit::servers;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::net::TcpListener;

#[tokio::test]
async fn publishing_is_one_round_trip_however_many_events() {
    let servers = servers().await.unwrap();
    let scope = servers.scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through_here = scope
        .database_url()
        .parse::<PgConnectOptions>()
        .unwrap()
        .port(listener.local_addr().unwrap().port());
    let turns = Arc::new(AtomicU64::new(0));
    let counting = tokio::spawn(count_turns(listener, servers.postgres.port(), turns.clone()));
    let pool = PgPoolOptions::new().max_connections(1).connect_with(through_here).await.unwrap();

    let event = || RawEvent::builder("t", "a").payload("{}").build().unwrap();
    // The first use of a statement on a connection prepares it.
    let mut tx = pool.begin().await.unwrap();
    publish(&mut tx, event()).await.unwrap();
    publish_all(&mut tx, [event()]).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = pool.begin().await.unwrap();
    let before = turns.load(Ordering::SeqCst);
    publish(&mut tx, event()).await.unwrap();
    assert_eq!(turns.load(Ordering::SeqCst) - before, 1);
    publish_all(&mut tx, (0..1000).map(|_| event())).await.unwrap();
    assert_eq!(turns.load(Ordering::SeqCst) - before, 2);
    tx.commit().await.unwrap();

    let row = "insert into orders (id) values (1)";
    sqlx::raw_sql("create table orders (id bigint)").execute(scope.pool()).await.unwrap();
    for with_event in [false, true] {
        let mut tx = Tx::open(&pool).await.unwrap();
        sqlx::raw_sql(row).execute(&mut *tx).await.unwrap();
        let before = turns.load(Ordering::SeqCst);
        if with_event {
            publish_with_commit(&mut tx, event()).await.unwrap();
        }
        tx.commit().await.unwrap();
        assert_eq!(turns.load(Ordering::SeqCst) - before, 1, "with an event: {with_event}");
    }
    let events: i64 = sqlx::query_scalar("select count(*) from pillarbox.outbox")
        .fetch_one(scope.pool())
        .await
        .unwrap();
    assert_eq!(events, 1_004);
    counting.abort();
}
