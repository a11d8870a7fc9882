//! The shop of the inbox's tests, with a stream and one consumer.

pub mod process;
#[path = "../../../../inbox/tests/it/shop.rs"]
mod shop;

use std::ops::Deref;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use futures::TryStreamExt;
use pillarbox_consumer::{Consumer, ConsumerConfig, ConsumerError};
use pillarbox_consumer::{ConsumerStatus, Watch};
use pillarbox_event::RawEvent;
use pillarbox_inbox::Router;
use pillarbox_testkit::{Scope, eventually, servers};
pub use shop::{DEADLINE, OrderPlaced, log, number, record};
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub struct Shop {
    shop: shop::Shop,
    pub stream: String,
}

impl Deref for Shop {
    type Target = shop::Shop;
    fn deref(&self) -> &shop::Shop {
        &self.shop
    }
}

impl Shop {
    pub async fn open() -> Self {
        Self::on(servers().await.unwrap().scope().await.unwrap()).await
    }

    pub async fn on(scope: Scope) -> Self {
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
        Self { shop: shop::Shop::on(scope).await, stream: stream.to_owned() }
    }

    pub fn config(&self) -> ConsumerConfig {
        ConsumerConfig {
            // The tests' topics begin with a prefix of their own.
            filter_subjects: vec![">".into()],
            concurrency: 8,
            prefetch: 64,
            max_attempts: 3,
            backoff: Duration::from_millis(5),
            max_backoff: Duration::from_millis(20),
            ack_wait: Duration::from_secs(2),
            takeover: Duration::from_millis(1_500),
            ..ConsumerConfig::new(self.stream.clone(), "payments")
        }
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
        let consumer =
            Consumer::with_config(self.scope.nats().clone(), pool.clone(), config).unwrap();
        let status = consumer.status();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(consumer.router(router).run(shutdown.clone()));
        (Started { running, shutdown }, status)
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
pub async fn until(
    what: &str,
    watch: &mut Watch,
    wanted: impl FnMut(&ConsumerStatus) -> bool,
) -> ConsumerStatus {
    let seen = watch.clone();
    match tokio::time::timeout(DEADLINE, watch.until(wanted)).await {
        Ok(Some(status)) => status,
        _ => panic!("waited for {what}; it is {:?}", seen.get()),
    }
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
