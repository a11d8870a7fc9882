//! A shop with one consumer.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod process;

use std::borrow::Cow;
use std::sync::Once;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use futures::TryStreamExt;
use pillarbox_consumer::{Consumer, ConsumerConfig, ConsumerError};
use pillarbox_consumer::{Status, Watch};
use pillarbox_event::{Event, RawEvent};
use pillarbox_inbox::Router;
use pillarbox_testkit::{Scope, eventually, servers};
use sqlx::{AssertSqlSafe, PgPool, Row};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct OrderPlaced {
    pub order: i64,
    pub step: i64,
}

impl Event for OrderPlaced {
    const TYPE: &'static str = "order.placed";
    fn topic(&self) -> Cow<'_, str> {
        "orders.placed".into()
    }
    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.order.to_string().into())
    }
}

pub fn log() {
    static LOG: Once = Once::new();
    LOG.call_once(|| {
        let filter =
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
    });
}

pub struct Shop {
    pub scope: Scope,
    pub stream: String,
}

impl Shop {
    pub async fn open() -> Self {
        Self::on(servers().await.unwrap().scope().await.unwrap()).await
    }

    pub async fn on(scope: Scope) -> Self {
        log();
        Self::quiet(scope).await
    }

    /// Where the test has a log of its own.
    pub async fn quiet(scope: Scope) -> Self {
        let stream = scope.prefix().to_uppercase();
        let config = jetstream::stream::Config {
            name: stream.clone(),
            subjects: vec![format!("{}.>", scope.prefix())],
            ..Default::default()
        };
        scope.jetstream().create_stream(config).await.unwrap();
        Self::without_stream(scope, &stream).await
    }

    /// Whose stream the test makes, wherever that is.
    pub async fn without_stream(scope: Scope, stream: &str) -> Self {
        pillarbox_inbox::migrate(scope.pool()).await.unwrap();
        sqlx::raw_sql(
            "create table effects (position bigint generated always as identity, event_id text, order_id bigint, step bigint)",
        )
        .execute(scope.pool())
        .await
        .unwrap();
        Self { scope, stream: stream.to_owned() }
    }

    pub fn pool(&self) -> &PgPool {
        self.scope.pool()
    }

    pub fn config(&self) -> ConsumerConfig {
        ConsumerConfig {
            stream: self.stream.clone(),
            name: "payments".into(),
            concurrency: 8,
            prefetch: 64,
            max_attempts: 3,
            backoff_ms: 5,
            max_backoff_ms: 20,
            ack_wait_ms: 2_000,
            takeover_ms: 1_500,
            ..ConsumerConfig::default()
        }
    }

    pub fn event(&self, order: i64, step: i64) -> RawEvent {
        let event = OrderPlaced { order, step };
        RawEvent::builder(OrderPlaced::TYPE, format!("{}.placed", self.scope.prefix()))
            .key(order.to_string())
            .payload(serde_json::to_vec(&event).unwrap())
            .build()
            .unwrap()
    }

    /// Sends an event, under a message id that the broker has not seen.
    pub async fn send(&self, event: &RawEvent) {
        self.send_raw(event.topic(), headers(event), event.payload().clone()).await;
    }

    pub async fn send_raw(
        &self,
        topic: &str,
        headers: HeaderMap,
        payload: impl Into<bytes::Bytes>,
    ) {
        let jetstream = self.scope.jetstream();
        let sent = jetstream.publish_with_headers(topic.to_owned(), headers, payload.into());
        sent.await.unwrap().await.unwrap();
    }

    pub fn start(&self, config: ConsumerConfig, router: Router) -> Started {
        self.start_on(self.pool(), config, router).0
    }

    /// On a pool of one's own, with its status.
    pub fn start_on(
        &self,
        pool: &PgPool,
        config: ConsumerConfig,
        router: Router,
    ) -> (Started, Watch) {
        let consumer = Consumer::new(self.scope.nats().clone(), pool.clone(), config).unwrap();
        let status = consumer.status();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(consumer.run(router, shutdown.clone()));
        (Started { running, shutdown }, status)
    }

    pub async fn number(&self, sql: &str) -> i64 {
        number(self.pool(), sql).await
    }

    /// Waits until a count is what it should be.
    pub async fn until(&self, sql: &str, wanted: i64) {
        let what = format!("{sql} = {wanted}");
        let found = eventually(&what, DEADLINE, async || {
            let row = sqlx::query(AssertSqlSafe(sql.to_owned()))
                .fetch_one(self.pool())
                .await
                .map_err(|e| e.to_string())?;
            match row.get::<i64, _>(0) {
                found if found == wanted => Ok(Some(())),
                found => Err(format!("it is {found}")),
            }
        });
        found.await.unwrap();
    }

    /// Waits until the server has nothing left to deliver or to be told.
    pub async fn drained(&self) {
        eventually("everything to be acknowledged", DEADLINE, async || {
            let stream =
                self.scope.jetstream().get_stream(&self.stream).await.map_err(|e| e.to_string())?;
            let mut consumers = stream.consumers();
            let (mut pending, mut unacknowledged) = (0, 0);
            while let Some(info) = consumers.try_next().await.map_err(|e| e.to_string())? {
                pending += info.num_pending;
                unacknowledged += info.num_ack_pending;
            }
            match (pending, unacknowledged) {
                (0, 0) => Ok(Some(())),
                _ => Err(format!("{pending} pending, {unacknowledged} unacknowledged")),
            }
        })
        .await
        .unwrap();
    }

    /// Every event's effect is there once, and each order's steps are in order.
    pub async fn assert_each_once_in_order(&self, events: i64) {
        assert_eq!(self.number("select count(*) from effects").await, events);
        assert_eq!(self.number("select count(distinct event_id) from effects").await, events);
        let inversions = "select count(*) from (select step, lag(step) over (partition by order_id order by position) \
                          as before from effects) as steps where before >= step";
        assert_eq!(self.number(inversions).await, 0, "steps out of order");
    }
}

pub fn headers(event: &RawEvent) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in event.wire_headers() {
        headers.insert(name, value.as_ref());
    }
    headers
}

pub struct Started {
    pub running: JoinHandle<Result<(), ConsumerError>>,
    pub shutdown: CancellationToken,
}

impl Started {
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// Waits until a status is as wanted.
pub async fn until(what: &str, watch: &mut Watch, wanted: impl FnMut(&Status) -> bool) -> Status {
    let seen = watch.clone();
    match tokio::time::timeout(DEADLINE, watch.until(wanted)).await {
        Ok(Some(status)) => status,
        _ => panic!("waited for {what}; it is {:?}", seen.get()),
    }
}

pub async fn number(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.unwrap().get(0)
}

/// Takes its time, and records.
pub struct Slow(pub Duration);

impl pillarbox_inbox::Handler<pillarbox_inbox::Received<OrderPlaced>> for Slow {
    async fn handle(
        &self,
        tx: &mut pillarbox_inbox::Tx,
        placed: pillarbox_inbox::Received<OrderPlaced>,
    ) -> Result<(), pillarbox_inbox::HandlerError> {
        tokio::time::sleep(self.0).await;
        record(tx, placed).await
    }
}

pub async fn record(
    tx: &mut pillarbox_inbox::Tx,
    placed: pillarbox_inbox::Received<OrderPlaced>,
) -> Result<(), pillarbox_inbox::HandlerError> {
    sqlx::query("insert into effects (event_id, order_id, step) values ($1, $2, $3)")
        .bind(placed.id().as_str())
        .bind(placed.order)
        .bind(placed.step)
        .execute(&mut **tx)
        .await?;
    Ok(())
}
