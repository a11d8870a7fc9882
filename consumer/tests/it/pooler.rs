//! A connection pooler between a service and its database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::support::{OrderPlaced, Shop, record};
use axum::Extension;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use pillarbox_consumer::{Consumer, ConsumerConfig, ConsumerError, generation};
use pillarbox_event::RawEvent;
use pillarbox_inbox::http::{Command, IdempotencyLayer, StoredRequests, scope};
use pillarbox_inbox::{
    BatchHandler, Delivery, HandlerError, InboxError, InboxLayer, Outcome, Received, Router, Tx,
};
use pillarbox_testkit::{PgBouncer, PoolMode, servers};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceBuilder, ServiceExt};

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
    let consumer =
        Consumer::with_config(shop.scope.nats().clone(), pool.clone(), shop.config()).unwrap();
    let ended = consumer.on(record).run(CancellationToken::new()).await;
    let error = ended.unwrap_err();
    assert!(matches!(error, ConsumerError::Inbox(InboxError::Pooled(_))), "{error}");
    assert!(error.to_string().contains("transaction mode"), "{error}");

    let layer = InboxLayer::new(pool, "payments").unwrap();
    let service = ServiceBuilder::new().layer(layer).service(Router::new().on(record));
    for _ in 0..2 {
        let error = service.clone().oneshot(shop.event(2, 1).into()).await.unwrap_err();
        assert!(matches!(error, InboxError::Pooled(_)), "{error}");
    }
    assert_eq!(shop.number("select count(*) from effects").await, 0);
    assert_eq!(shop.number("select count(*) from pillarbox.inbox").await, 0);
}

/// What an error says, with its sources.
fn said(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn every_call_refuses_sessions_that_others_share_and_leaves_nothing_in_them() {
    let shop = Shop::open().await;
    let Some((_pgbouncer, pool)) = behind(&shop, PoolMode::Transaction, 100).await else { return };
    let failure = HandlerError::permanent("by hand");
    let event = shop.event(1, 1);
    let config = |partitions| ConsumerConfig { partitions, ..shop.config() };
    let consumer =
        |config| Consumer::with_config(shop.scope.nats().clone(), pool.clone(), config).unwrap();
    // Each with a look of its own.
    let letters = || InboxLayer::new(pool.clone(), "payments").unwrap().dead_letters();
    let service = InboxLayer::new(pool.clone(), "payments").unwrap().layer(Router::new());
    let refused = [
        ("list", said(&letters().list(10).await.unwrap_err())),
        ("show", said(&letters().show(1).await.unwrap_err())),
        ("retry", said(&letters().retry("id").await.unwrap_err())),
        ("retry_all", said(&letters().retry_all().await.unwrap_err())),
        ("retry_with", said(&letters().retry_with(service).await.unwrap_err())),
        ("discard", said(&letters().discard(1).await.unwrap_err())),
        ("give_up", said(&letters().give_up(&event, failure.cause(), 1).await.unwrap_err())),
        ("remove_old", {
            let layer = InboxLayer::new(pool.clone(), "payments").unwrap();
            said(&layer.remove_old(Duration::ZERO).await.unwrap_err())
        }),
        ("remove_older_than", {
            let requests = StoredRequests::new(pool.clone());
            said(&requests.remove_older_than(Duration::ZERO).await.unwrap_err())
        }),
        ("retire", {
            let jetstream = shop.scope.jetstream();
            said(&generation::retire(&jetstream, &pool, &config(1)).await.unwrap_err())
        }),
        ("on_batch", {
            let batches = FailsOne(Arc::default());
            let run = consumer(config(1)).on_batch(batches).run(CancellationToken::new());
            said(&run.await.unwrap_err())
        }),
        ("run with partitions", {
            let run = consumer(config(3)).on(record).run(CancellationToken::new());
            said(&run.await.unwrap_err())
        }),
    ];
    for (call, said) in refused {
        assert!(said.contains("transaction mode"), "{call}: {said}");
    }
    let calls = Arc::new(AtomicU32::new(0));
    let app = app(&pool, calls.clone());
    for _ in 0..2 {
        let answer = app.clone().oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    for table in ["inbox", "inbox_dead_letter", "inbox_failure", "inbox_process", "inbox_request"] {
        let rows = format!("select count(*) from pillarbox.{table}");
        assert_eq!(shop.number(&rows).await, 0, "{table}");
    }
    // In a session that a statement was prepared in, its name would stay for whoever comes next.
    for _ in 0..20 {
        let prepared = sqlx::raw_sql("select name from pg_prepared_statements where not from_sql");
        assert!(prepared.fetch_all(&pool).await.unwrap().is_empty());
    }
}

fn app(pool: &PgPool, calls: Arc<AtomicU32>) -> axum::Router {
    let insert = async move |command: Extension<Command>| {
        calls.fetch_add(1, Ordering::SeqCst);
        let mut tx = command.transaction().await.unwrap();
        let insert = "insert into effects (event_id, order_id) values ('http', 0)";
        sqlx::query(insert).execute(&mut **tx).await.unwrap();
        StatusCode::CREATED
    };
    let layer = IdempotencyLayer::new(pool.clone(), scope::everybody);
    axum::Router::new().route("/", post(insert)).layer(layer)
}

fn request() -> Request<Body> {
    Request::post("/").header("idempotency-key", "one").body(Body::empty()).unwrap()
}

#[tokio::test]
async fn behind_a_pooler_in_session_mode_batches_letters_requests_and_retention_work() {
    let shop = Shop::open().await;
    pillarbox_outbox::migrate(shop.pool()).await.unwrap();
    let Some((_pgbouncer, pool)) = behind(&shop, PoolMode::Session, 100).await else { return };
    let broken = Arc::new(AtomicBool::new(true));
    let handler = FailsOne(broken.clone());
    for order in 0..20 {
        shop.send(&shop.event(order, 1)).await;
    }
    let config = ConsumerConfig { batch_size: 5, ..shop.config() };
    let consumer = Consumer::with_config(shop.scope.nats().clone(), pool.clone(), config).unwrap();
    let letters = consumer.dead_letters();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(consumer.on_batch(handler).run(shutdown.clone()));
    shop.until("select count(*) from pillarbox.inbox", 20).await;
    broken.store(false, Ordering::SeqCst);
    assert_eq!(letters.list(10).await.unwrap().len(), 1);
    assert_eq!(letters.retry_all().await.unwrap(), 1);
    shop.until("select count(*) from effects", 20).await;
    shop.until("select count(*) from pillarbox.outbox", 20).await;
    shop.drained().await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    shop.assert_each_once_in_order(20).await;
    let layer = InboxLayer::new(pool.clone(), "payments").unwrap();
    assert_eq!(layer.remove_old(Duration::ZERO).await.unwrap(), 20);
    let calls = Arc::new(AtomicU32::new(0));
    let app = app(&pool, calls.clone());
    for _ in 0..3 {
        let answer = app.clone().oneshot(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let requests = StoredRequests::new(pool.clone());
    assert_eq!(requests.remove_older_than(Duration::ZERO).await.unwrap(), 1);
}

/// Refuses order 7 while it is broken; publishes something for the others.
struct FailsOne(Arc<AtomicBool>);

impl BatchHandler<OrderPlaced> for FailsOne {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        for event in events {
            if event.order == 7 && self.0.load(Ordering::SeqCst) {
                return Err(HandlerError::permanent("not now"));
            }
            record(tx, event.clone()).await?;
            let said = RawEvent::builder("said", "said").build()?;
            pillarbox_outbox::publish(tx, said.caused_by(&event.context())).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_pooler_in_session_mode_is_as_good_as_none() {
    let shop = Shop::open().await;
    let Some((_pgbouncer, pool)) = behind(&shop, PoolMode::Session, 100).await else { return };
    for step in 0..20 {
        shop.send(&shop.event(1, step)).await;
    }
    let (started, _) = shop.start_on(&pool, shop.config(), Router::new().on(record));
    shop.until("select count(*) from effects", 20).await;
    shop.drained().await;
    started.stop().await;
    shop.assert_each_once_in_order(20).await;
    let layer = InboxLayer::new(pool, "payments").unwrap();
    let service = ServiceBuilder::new().layer(layer).service(Router::new().on(record));
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
