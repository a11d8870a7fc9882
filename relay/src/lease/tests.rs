use std::time::Duration;

use pillarbox_testkit::{Scope, servers};
use tokio::time::timeout;

use super::*;

/// A lease on the outbox of a database of its own.
async fn led() -> (Scope, Arc<Lease>, Cursor) {
    let scope = servers().await.unwrap().scope().await.unwrap();
    pillarbox_outbox::migrate(scope.pool()).await.unwrap();
    let connection = scope.pool().acquire().await.unwrap().detach();
    let length = Duration::from_secs(20);
    let mut registry = Registry::new(connection, "pillarbox", "default", "test", length);
    let grant = registry.ask().await.unwrap().expect("nobody else is there");
    let (lease, cursor) = registry.lead(grant).await.unwrap();
    (scope, lease, cursor)
}

async fn number(lease: &Lease, sql: &'static str) -> i64 {
    let rows = async |c: &mut PgConnection| sqlx::query(sql).fetch_all(c).await;
    lease.within(rows).await.unwrap().last().unwrap().try_get(0).unwrap()
}

#[tokio::test]
async fn a_statement_that_is_dropped_leaves_the_next_one_its_own_answer() {
    let (_scope, lease, cursor) = led().await;
    let many =
        "select n, pg_sleep(case when n % 100 = 0 then 0.001 end) from generate_series(1, 5000) n";
    for dropped_after in [0, 1, 5, 20, 60] {
        let limit = Duration::from_millis(dropped_after);
        let asked = timeout(limit, number(&lease, many)).await;
        assert!(asked.is_err(), "it was not dropped within {limit:?}");
        assert_eq!(number(&lease, "select 7::bigint").await, 7);
        lease.renew().await.unwrap();
    }
    let (_progress, mut reached) = watch::channel(cursor);
    lease.save(&mut reached).await.unwrap();
}

#[tokio::test]
async fn a_cursor_that_waits_to_be_saved_is_the_newest_once_it_is_written() {
    let (scope, lease, cursor) = led().await;
    let (progress, mut reached) = watch::channel(cursor.clone());
    let slow = number(&lease, "select 1::bigint from pg_sleep(0.3)");
    let saved = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        lease.save(&mut reached).await.unwrap();
    };
    let moved = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        // The slow statement still has the connection, and the save waits for it.
        progress.send_replace(Cursor { high: 7, ..cursor });
    };
    tokio::join!(slow, saved, moved);
    let high = sqlx::query("select (cursor ->> 'high')::bigint from pillarbox.relay");
    let high: i64 = high.fetch_one(scope.pool()).await.unwrap().try_get(0).unwrap();
    assert_eq!(high, 7);
}
