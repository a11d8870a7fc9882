//! A connection pooler between a service and its database.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use pillarbox_event::RawEvent;
use pillarbox_inbox::{
    Consumer, ConsumerError, Delivery, InboxError, InboxLayer, Outcome, Router, handler_fn,
};
use pillarbox_testkit::{PgBouncer, PoolMode, servers};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use support::{Shop, record};
use tokio_util::sync::CancellationToken;
use tower::{ServiceBuilder, ServiceExt};

/// A pooler in front of the shop's database, and a pool behind it. `None` where there is no PgBouncer.
async fn behind(shop: &Shop, mode: PoolMode, statements: usize) -> Option<(PgBouncer, PgPool)> {
    let started = PgBouncer::options()
        .mode(mode)
        .setting("default_pool_size", "20")
        .start(&servers().await.unwrap().postgres)
        .await
        .unwrap();
    let Some(pgbouncer) = started else {
        println!("NOT TESTED: there is no PgBouncer");
        return None;
    };
    let direct: PgConnectOptions = shop.scope.database_url().parse().unwrap();
    let through: PgConnectOptions = pgbouncer.url(direct.get_database().unwrap()).parse().unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .connect_with(through.statement_cache_capacity(statements))
        .await
        .unwrap();
    Some((pgbouncer, pool))
}

#[tokio::test]
async fn a_consumer_and_a_layer_refuse_sessions_that_others_share() {
    let shop = Shop::open().await;
    let Some((_pgbouncer, pool)) = behind(&shop, PoolMode::Transaction, 100).await else { return };
    shop.send(&shop.event(1, 1)).await;
    let consumer = Consumer::new(shop.scope.nats().clone(), pool.clone(), shop.config()).unwrap();
    let ended = consumer.run(Router::new().on(handler_fn(record)), CancellationToken::new()).await;
    let error = ended.unwrap_err();
    assert!(matches!(error, ConsumerError::Inbox(InboxError::Pooled(_))), "{error}");
    assert!(error.to_string().contains("transaction mode"), "{error}");

    let layer = InboxLayer::new(pool, "payments").unwrap();
    let service = ServiceBuilder::new().layer(layer).service(Router::new().on(handler_fn(record)));
    for _ in 0..2 {
        let error = service.clone().oneshot(shop.event(2, 1).into()).await.unwrap_err();
        assert!(matches!(error, InboxError::Pooled(_)), "{error}");
    }
    assert_eq!(shop.number("select count(*) from effects").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox").await, 0);
}

#[tokio::test]
async fn a_pooler_in_session_mode_is_as_good_as_none() {
    let shop = Shop::open().await;
    let Some((_pgbouncer, pool)) = behind(&shop, PoolMode::Session, 100).await else { return };
    for step in 0..20 {
        shop.send(&shop.event(1, step)).await;
    }
    let (started, _) = shop.start_on(&pool, shop.config(), Router::new().on(handler_fn(record)));
    shop.until("select count(*) from effects", 20).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(20).await;
    let layer = InboxLayer::new(pool, "payments").unwrap();
    let service = ServiceBuilder::new().layer(layer).service(Router::new().on(handler_fn(record)));
    let handled = service.oneshot(Delivery::from(shop.event(2, 1))).await.unwrap();
    assert_eq!(handled, Outcome::Handled);
}

#[tokio::test]
async fn what_is_published_behind_a_pooler_is_there_or_is_an_error() {
    let shop = Shop::open().await;
    pillarbox_outbox::migrate(shop.pool()).await.unwrap();
    for statements in [0, 100] {
        let Some((_pgbouncer, pool)) = behind(&shop, PoolMode::Transaction, statements).await
        else {
            return;
        };
        sqlx::raw_sql("truncate pillarbox.outbox").execute(shop.pool()).await.unwrap();
        let mut published = 0_i64;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let pool = pool.clone();
            tasks.spawn(async move {
                let mut published = 0;
                for _ in 0..20 {
                    let mut tx = pool.begin().await.unwrap();
                    let one = || RawEvent::builder("a", "t").build().unwrap();
                    let written = async {
                        pillarbox_outbox::publish(&mut tx, one()).await?;
                        pillarbox_outbox::publish_all(&mut tx, [one(), one()]).await
                    };
                    if written.await.is_ok() && tx.commit().await.is_ok() {
                        published += 3;
                    }
                }
                published
            });
        }
        while let Some(done) = tasks.join_next().await {
            published += done.unwrap();
        }
        assert_eq!(shop.number("select count(*) from pillarbox.outbox").await, published);
        if statements == 0 {
            assert_eq!(published, 480, "without kept statements it works");
        }
    }
}
