//! What others put into a schema of the service's search_path runs in no statement of the inbox.

mod names;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{self, DEADLINE, OrderPlaced, Shop, record, until};
use async_nats::HeaderMap;
use axum::Extension;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use pillarbox_consumer::{Consumer, ConsumerConfig, HandlingOrder, generation};
use pillarbox_event::{Partition, header};
use pillarbox_inbox::http::{Command, IdempotencyLayer, StoredRequests, scope};
use pillarbox_inbox::{
    BatchHandler, Handler, HandlerError, InboxLayer, Outcome, Received, Router, Tx,
};
use pillarbox_testkit::{eventually, traps};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tower::{Layer, ServiceExt};

/// Lets a role that is nobody in particular create what it likes in this schema.
async fn lay_traps(shop: &Shop, schema: &str) {
    let role = format!("stranger_{}", shop.scope.prefix());
    let sql = format!(
        "create schema if not exists {schema}; create role {role}; grant usage on schema {schema} to public; \
         grant create, usage on schema {schema} to {role}; begin; set local role {role}; {} commit",
        traps::sql(schema)
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(shop.pool()).await.unwrap();
}

/// A service's pool with this search_path.
async fn service(shop: &Shop, path: &str) -> PgPool {
    let options: PgConnectOptions = shop.scope.database_url().parse().unwrap();
    let options = options.options([("search_path", path.replace(' ', ""))]);
    PgPoolOptions::new().max_connections(20).connect_with(options).await.unwrap()
}

/// A run with a search_path in which a schema with traps is, and a consumer's name that nobody else has.
struct Run<'a> {
    shop: &'a Shop,
    schema: &'static str,
    path: &'static str,
    pool: PgPool,
    name: String,
}

/// Fails by the step of an event, while it is broken: see the match.
#[derive(Clone)]
struct Fails(Arc<AtomicBool>);

impl Handler<Received<OrderPlaced>> for Fails {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        let first = placed.attempt() == 1;
        match placed.step {
            1 if first => return Err(HandlerError::transient("the first time")),
            2 if self.0.load(Ordering::SeqCst) => return Err(HandlerError::permanent("broken")),
            3 if self.0.swap(false, Ordering::SeqCst) => {
                return Err(HandlerError::outage("the provider is away"));
            }
            4 if self.0.swap(false, Ordering::SeqCst) => {
                sqlx::raw_sql(
                    "do $$ begin raise exception using errcode = '40001', message = 'a conflict'; end $$",
                )
                .execute(&mut **tx)
                .await?;
            }
            _ => {}
        }
        record(tx, placed).await
    }
}

impl BatchHandler<OrderPlaced> for Fails {
    async fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<OrderPlaced>],
    ) -> Result<(), HandlerError> {
        for event in events {
            Handler::handle(self, tx, event.clone()).await?;
        }
        Ok(())
    }
}

fn fails() -> (Fails, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(true));
    (Fails(broken.clone()), broken)
}

impl Run<'_> {
    fn config(&self, kind: &str) -> ConsumerConfig {
        ConsumerConfig {
            name: format!("{}-{kind}", self.name),
            filter_subjects: vec![format!("{}.{}-{kind}", self.shop.scope.prefix(), self.name)],
            ..self.shop.config()
        }
    }

    async fn send(&self, config: &ConsumerConfig, order: i64, step: i64) {
        let event = self.shop.event(order, step);
        let headers = support::headers(&event);
        let topic = &config.filter_subjects[0];
        self.shop.send_raw(topic, headers, event.payload().clone()).await;
    }

    async fn fine(&self, after: &str) {
        let sql = format!("select is_called::integer::bigint from {}.sprung", self.schema);
        let path = self.path;
        let sprung = self.shop.number(&sql).await;
        assert_eq!(sprung, 0, "a trap ran with search_path = {path}, in or before: {after}");
    }

    /// Waits for a number, and fails at once when a trap has run.
    async fn until(&self, sql: &str, wanted: i64) {
        eventually(&format!("{sql} = {wanted}"), DEADLINE, async || {
            self.fine(sql).await;
            let found = self.shop.number(sql).await;
            if found == wanted { Ok(Some(())) } else { Err(format!("it is {found}")) }
        })
        .await
        .unwrap();
    }

    async fn rows(&self, config: &ConsumerConfig, table: &str, more: &str, wanted: i64) {
        let name = &config.name;
        let sql =
            format!("select count(*) from pillarbox.{table} where consumer = '{name}' {more}");
        self.until(&sql, wanted).await;
    }

    /// Attempts, an outage, a conflict, an unreadable message, letters, a strict order, retention.
    async fn a_consumer(&self) {
        let config = ConsumerConfig { order: HandlingOrder::Strict, ..self.config("strict") };
        for step in [0, 1, 2, 5] {
            self.send(&config, 1, step).await;
        }
        self.shop.send_raw(&config.filter_subjects[0], HeaderMap::new(), "").await;
        let (handler, broken) = fails();
        let consumer = Consumer::with_config(
            self.shop.scope.nats().clone(),
            self.pool.clone(),
            config.clone(),
        );
        let consumer = consumer.unwrap();
        let letters = consumer.dead_letters();
        let shutdown = tokio_util::sync::CancellationToken::new();
        let running = tokio::spawn(consumer.on(handler).run(shutdown.clone()));
        self.rows(&config, "inbox_dead_letter", "and state = 'dead'", 2).await;
        self.rows(&config, "inbox_dead_letter", "and state = 'parked'", 1).await;
        self.rows(&config, "inbox", "", 4).await;
        let found = letters.list(10).await.unwrap();
        let dead = found.iter().find(|letter| letter.event_type.is_some()).unwrap();
        let unreadable = found.iter().find(|letter| letter.event_type.is_none()).unwrap();
        letters.show(dead.event_id.as_str()).await.unwrap().unwrap();
        self.fine("list and show letters").await;
        assert!(!letters.retry(unreadable.position).await.unwrap(), "it is no event");
        broken.store(false, Ordering::SeqCst);
        assert!(letters.retry(dead.event_id.as_str()).await.unwrap());
        self.rows(&config, "inbox_dead_letter", "and state = 'retried'", 2).await;
        assert!(letters.discard(unreadable.position).await.unwrap());
        letters.retry_all().await.unwrap();
        self.fine("letters").await;
        for step in [3, 4] {
            broken.store(true, Ordering::SeqCst);
            self.send(&config, 2, step).await;
            self.rows(&config, "inbox", "", 4 + step - 2).await;
        }
        shutdown.cancel();
        running.await.unwrap().unwrap();
        self.fine("a consumer").await;
        let layer = InboxLayer::new(self.pool.clone(), &config.name).unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(layer.remove_old(Duration::ZERO).await.unwrap() > 0);
        self.rows(&config, "inbox", "", 0).await;
        let retired =
            generation::retire(&self.shop.scope.jetstream(), &self.pool, &config).await.unwrap();
        assert!(retired.consumer);
        self.fine("retention").await;
    }

    /// Batches in which some fail.
    async fn batches(&self) {
        let config = ConsumerConfig {
            batch_size: 10,
            batch_linger: Duration::from_millis(100),
            ..self.config("batches")
        };
        for (order, step) in [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 0), (3, 5)] {
            self.send(&config, order, step).await;
        }
        let (handler, _) = fails();
        let consumer = Consumer::with_config(
            self.shop.scope.nats().clone(),
            self.pool.clone(),
            config.clone(),
        );
        let shutdown = tokio_util::sync::CancellationToken::new();
        let running = tokio::spawn(consumer.unwrap().on_batch(handler).run(shutdown.clone()));
        self.rows(&config, "inbox", "", 7).await;
        shutdown.cancel();
        running.await.unwrap().unwrap();
        self.fine("batches").await;
    }

    /// A consumer that shares partitions, and gives them up.
    async fn partitions(&self) {
        let stream = async_nats::jetstream::stream::Config {
            name: format!("{}-P-{}", self.shop.stream, self.name),
            subjects: vec![format!("{}-p-{}.>", self.shop.scope.prefix(), self.name)],
            ..Default::default()
        };
        self.shop.scope.jetstream().create_stream(&stream).await.unwrap();
        let config = ConsumerConfig {
            stream: stream.name,
            filter_subjects: vec![">".into()],
            partitions: 3,
            ..self.config("partitions")
        };
        let topic = format!("{}-p-{}.placed", self.shop.scope.prefix(), self.name);
        for order in 0..6 {
            let event = self.shop.event(order, 0);
            let partition = Partition::of_key(event.key().unwrap(), 3);
            let mut headers = support::headers(&event);
            headers.insert(header::PARTITION, partition.to_string());
            let subject = partition.subject(&topic);
            self.shop.send_raw(&subject, headers, event.payload().clone()).await;
        }
        let router = || Router::new().on(record);
        let (one, mut watch) = self.shop.start_on(&self.pool, config.clone(), router());
        self.rows(&config, "inbox", "", 6).await;
        let (other, _) = self.shop.start_on(&self.pool, config.clone(), router());
        until("the partitions to be shared", &mut watch, |status| {
            status.partitions.as_ref().is_some_and(|partitions| partitions.held.len() < 3)
        })
        .await;
        one.stop().await;
        other.stop().await;
        self.fine("partitions").await;
    }

    /// A request, its repeat, and its removal.
    async fn http(&self) {
        let layer = IdempotencyLayer::new(self.pool.clone(), scope::everybody);
        let insert = async |command: Extension<Command>| {
            let mut tx = command.transaction().await.unwrap();
            let insert = "insert into effects (event_id) values ('http')";
            sqlx::query(insert).execute(&mut **tx).await.unwrap();
            (StatusCode::CREATED, "done")
        };
        let app = axum::Router::new().route("/", post(insert)).layer(layer);
        for _ in 0..2 {
            let request = Request::post("/").header("idempotency-key", &self.name);
            let request = request.body(Body::empty()).unwrap();
            let answer = app.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::CREATED);
        }
        let requests = StoredRequests::new(self.pool.clone());
        assert_eq!(requests.remove_older_than(Duration::ZERO).await.unwrap(), 1);
        self.fine("HTTP").await;
    }

    /// The layer without a consumer, and its letters.
    async fn a_layer(&self) {
        let layer = InboxLayer::new(self.pool.clone(), &format!("{}-layer", self.name)).unwrap();
        let service = layer.layer(Router::new().on(record));
        let event = self.shop.event(1, 1);
        for outcome in [Outcome::Handled, Outcome::Duplicate] {
            assert_eq!(service.clone().oneshot(event.clone().into()).await.unwrap(), outcome);
        }
        let letters = layer.dead_letters();
        let other = self.shop.event(1, 2);
        let error = HandlerError::permanent("by hand");
        assert!(letters.give_up(&other, error.cause(), 1).await.unwrap());
        letters.retry_all().await.unwrap();
        letters.retry_with(service).await.unwrap();
        self.fine("a layer").await;
    }
}

async fn no_trap_runs(schema: &'static str, paths: [&'static str; 2]) {
    let shop = Shop::open().await;
    lay_traps(&shop, schema).await;
    for (number, path) in (1..).zip(paths) {
        let pool = service(&shop, path).await;
        let run = Run { shop: &shop, schema, path, pool, name: format!("path{number}") };
        run.a_layer().await;
        run.http().await;
        run.a_consumer().await;
        run.batches().await;
        run.partitions().await;
    }
    // They are good traps: without this, all of the above would pass with traps that nobody steps on.
    for path in paths {
        let pool = service(&shop, path).await;
        let sequence = format!("{schema}.sprung");
        let again = format!("select setval('{sequence}', 1, false)");
        assert_eq!(shop.number(&again).await, 1);
        let statement = "select $1::bigint * interval '1 second'";
        let _ = sqlx::query(statement).bind(1_i64).fetch_one(&pool).await;
        let sprung = format!("select is_called::integer::bigint from {sequence}");
        assert_eq!(shop.number(&sprung).await, 1, "{path}");
    }
}

/// The paths under which a trap is found: before the same name in pg_catalog, and only where it fits better.
#[tokio::test]
async fn no_trap_in_public_runs_in_a_statement_of_the_inbox() {
    no_trap_runs("public", ["public, pg_catalog", "public"]).await;
}

#[tokio::test]
async fn no_trap_in_a_schema_that_the_service_shares_runs_in_a_statement_of_the_inbox() {
    no_trap_runs("shared", ["shared, pg_catalog, public", "public, shared"]).await;
}
