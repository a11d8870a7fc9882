//! What was handled long ago is forgotten, and not before it can no longer come again.

use std::time::Duration;

use crate::support::{DEADLINE, Shop, record};
use async_nats::jetstream;
use pillarbox_consumer::{Consumer, ConsumerConfig, ConsumerError};
use pillarbox_inbox::{InboxLayer, Router};
use pillarbox_testkit::eventually;
use tokio_util::sync::CancellationToken;

const OLD: &str = "insert into pillarbox.inbox (consumer, event_id, processed_at) \
     select consumer, 'old-' || n, clock_timestamp() - interval '2 hours' \
     from unnest(array['payments', 'others']) as consumer, generate_series(1, 20000) as n";

const LEFT: &str =
    "select count(*) from pillarbox.inbox where consumer = 'payments' and event_id like 'old-%'";

#[tokio::test]
async fn a_consumer_removes_its_old_rows_and_only_those() {
    let shop = Shop::open().await;
    sqlx::raw_sql(OLD).execute(shop.pool()).await.unwrap();
    sqlx::raw_sql(
        "insert into pillarbox.inbox_failure (consumer, event_id, attempts, last_error, last_failed_at) \
         values ('payments', 'old', 1, '', now() - interval '2 hours'), ('payments', 'new', 1, '', now())",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    shop.send(&shop.event(1, 1)).await;
    let config = ConsumerConfig {
        retention: Duration::from_secs(2),
        max_attempts: 1,
        handler_timeout: Duration::from_secs(1),
        ..shop.config()
    };
    let started = shop.start(config, Router::new().on(record));
    shop.until("select count(*) from effects", 1).await;
    shop.until(LEFT, 0).await;
    shop.until("select count(*) from pillarbox.inbox_failure", 1).await;
    let others = "select count(*) from pillarbox.inbox where consumer = 'others'";
    assert_eq!(shop.number(others).await, 20_000);
    started.stop().await;
}

#[tokio::test]
async fn resolved_dead_letters_go_in_time_and_unresolved_ones_never() {
    let shop = Shop::open().await;
    sqlx::raw_sql(
        "insert into pillarbox.inbox_dead_letter \
         (consumer, event_id, topic, headers, payload, reason, error, attempts, first_failed_at, dead_at, state, resolved_at) \
         select 'payments', state || n, 'a', '{}', '', 'attempts', '', 5, now(), now() - interval '9 hours', state, \
             case when state in ('retried', 'discarded') then now() - interval '2 hours' end \
         from unnest(array['dead', 'parked', 'retried', 'discarded']) as state, generate_series(1, 1500) as n",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    sqlx::raw_sql(
        "update pillarbox.inbox_dead_letter set consumer = 'others' where event_id = 'retried7'",
    )
    .execute(shop.pool())
    .await
    .unwrap();
    let layer = InboxLayer::new(shop.pool().clone(), "payments").unwrap();
    let left = "select count(*) from pillarbox.inbox_dead_letter";
    layer.remove_old(Duration::from_secs(3 * 3600)).await.unwrap();
    assert_eq!(shop.number(left).await, 6_000, "they were resolved two hours ago");
    layer.remove_old(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(shop.number(left).await, 3_001);
    let unresolved = format!("{left} where state in ('dead', 'parked')");
    assert_eq!(shop.number(&unresolved).await, 3_000);
}

#[tokio::test]
async fn removing_waits_for_nobody_and_keeps_what_is_young() {
    let shop = Shop::open().await;
    sqlx::raw_sql(OLD).execute(shop.pool()).await.unwrap();
    let layer = InboxLayer::new(shop.pool().clone(), "payments").unwrap();
    assert_eq!(layer.remove_old(Duration::from_secs(3 * 3600)).await.unwrap(), 0);
    assert_eq!(layer.remove_old(Duration::MAX).await.unwrap(), 0);
    // Somebody holds one of them, as a repeat's transaction may.
    let mut held = shop.pool().begin().await.unwrap();
    let lock =
        "select from pillarbox.inbox where consumer = 'payments' and event_id = 'old-7' for update";
    sqlx::query(lock).execute(&mut *held).await.unwrap();
    let removed = tokio::time::timeout(DEADLINE, layer.remove_old(Duration::from_secs(3600))).await;
    assert_eq!(removed.expect("it waits for nobody").unwrap(), 19_999);
    held.rollback().await.unwrap();
    // Another process's turn is not disturbed.
    let mut turn = shop.pool().begin().await.unwrap();
    let lock = "select pg_advisory_xact_lock(hashtextextended('pillarbox.inbox payments', 0))";
    sqlx::query(lock).execute(&mut *turn).await.unwrap();
    assert_eq!(layer.remove_old(Duration::from_secs(3600)).await.unwrap(), 0);
    turn.rollback().await.unwrap();
    assert_eq!(layer.remove_old(Duration::from_secs(3600)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_retention_shorter_than_the_streams_is_refused_with_both_figures() {
    let shop = Shop::open().await;
    let stream = jetstream::stream::Config {
        name: shop.stream.clone(),
        subjects: vec![format!("{}.>", shop.scope.prefix())],
        max_age: Duration::from_secs(7_200),
        ..Default::default()
    };
    shop.scope.jetstream().update_stream(stream).await.unwrap();
    let run = async |seconds| {
        let config = ConsumerConfig { retention: Duration::from_secs(seconds), ..shop.config() };
        let consumer =
            Consumer::with_config(shop.scope.nats().clone(), shop.pool().clone(), config).unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(consumer.on(crate::support::record).run(stop.clone()));
        (running, stop)
    };
    let (running, _stop) = run(7_199).await;
    let error = tokio::time::timeout(DEADLINE, running).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, ConsumerError::Retention { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("for 7199 s") && said.contains("to at least 7200"), "{said}");
    let (running, stop) = run(7_200).await;
    eventually("the consumer to be there", DEADLINE, async || {
        let stream =
            shop.scope.jetstream().get_stream(&shop.stream).await.map_err(|e| e.to_string())?;
        Ok::<_, String>(stream.consumer_info("payments").await.ok())
    })
    .await
    .unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
}
