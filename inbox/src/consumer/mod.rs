//! Events from JetStream: pulled, bounded, in order per key, handled once, acknowledged after the commit.
//!
//! Of what is held, each key's events run one after the other, and different keys side by side. An event that
//! fails waits in process and holds back its own key only, while the server is told that it is in work. While
//! the database is away nothing is started and nothing counted: the consumer pauses, looks whether it is back,
//! and goes on.

mod config;
mod durable;
mod incoming;
mod lanes;
mod limit;
mod pause;
mod running;
pub mod status;
mod subscription;
mod suspects;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tower_layer::Layer;
use tower_service::Service;

pub use config::{ConsumerConfig, Order};
pub use status::{Lag, LastError, State, Status, Totals, Watch};

use crate::delivery::{Delivery, Handling, Outcome};
use crate::error::InboxError;
use crate::layer::InboxLayer;
use crate::store::Store;
use durable::NotNow;
use limit::Limit;
use pause::Waits;
use running::{Ended, Running};
use status::Reporter;
use subscription::Subscription;
use suspects::Suspects;
use worker::{Rules, Worker};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a consumer ended, or did not begin. Outages are not among them: it waits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// A setting cannot be used.
    #[error("consumer setting {key} cannot be used: {problem}")]
    Config {
        /// The setting's name.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The schema's name is refused.
    #[error(transparent)]
    Inbox(#[from] InboxError),
    /// There is a durable consumer of this name with another setting, and it is not changed behind its back.
    #[error(
        "consumer {name} of stream {stream} exists with {field} = {found}, and {expected} is wanted: \
         use that, another name, or delete it"
    )]
    Differs {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// The setting.
        field: &'static str,
        /// What it has.
        found: String,
        /// What was asked for.
        expected: String,
    },
}

/// Hands the events of a durable JetStream consumer to a handler, once each.
#[derive(Clone, Debug)]
pub struct Consumer {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    store: Store,
    config: Arc<ConsumerConfig>,
    reporter: Reporter,
}

impl Consumer {
    /// A consumer with these settings, which keeps what it has handled in `pool`'s database. The pool should
    /// have at least `concurrency` connections. Talks to nobody yet.
    ///
    /// # Errors
    /// [`ConsumerError::Config`], with the setting that cannot be used.
    pub fn new(
        client: async_nats::Client,
        pool: PgPool,
        config: ConsumerConfig,
    ) -> Result<Self, ConsumerError> {
        config.validate()?;
        // A handler is dropped before its transaction has been idle for so long.
        let longest_idle = config.handler_timeout() + Duration::from_secs(2);
        let store = Store::new(pool, &config.name, &config.schema, Some(longest_idle))?.keeping();
        let jetstream = jetstream::context::ContextBuilder::new()
            .timeout(Duration::from_secs(5))
            .build(client.clone());
        let reporter = Reporter::new(&config.name, &config.stream);
        Ok(Self { client, jetstream, store, config: Arc::new(config), reporter })
    }

    /// How it is, to be looked at while it runs: keep the [`Watch`], and give its
    /// [`get`](Watch::get) to a health endpoint.
    ///
    /// ```no_run
    /// # async fn example(consumer: pillarbox_inbox::Consumer) -> Result<(), Box<dyn std::error::Error>> {
    /// # use pillarbox_inbox::Router;
    /// let status = consumer.status();
    /// let running = tokio::spawn(consumer.run(Router::new(), Default::default()));
    /// println!("{}", serde_json::to_string(&status.get())?); // {"consumer":"payments", … "state":"active", …}
    /// # running.await??; Ok(()) }
    /// ```
    ///
    /// Clones of a consumer share it; where two of one name run in a process, make two.
    pub fn status(&self) -> Watch {
        self.reporter.watch()
    }

    /// Handles events with `service` until `shutdown` is cancelled, which lets running handlers finish, up to
    /// `shutdown_timeout_ms`. A [`Router`](crate::Router) is such a service, also under layers that should see
    /// the transaction.
    ///
    /// Outages of the database and the broker are waited out, for as long as they take. Dropping the future
    /// stops at once: what runs is rolled back and comes again.
    ///
    /// # Errors
    /// [`ConsumerError::Differs`].
    pub async fn run<S>(self, service: S, shutdown: CancellationToken) -> Result<(), ConsumerError>
    where
        S: Service<Handling, Response = (), Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + 'static,
    {
        let longest = self.config.handler_timeout();
        let service = Limit { inner: service, longest };
        let service = InboxLayer::of(self.store.clone()).layer(service);
        self.run_service(service, shutdown).await
    }

    /// As [`run`](Self::run), with a service that has the [`InboxLayer`] inside already, under the same
    /// consumer name and schema, and other layers around it. `handler_timeout_ms` is not applied: put tower's
    /// timeout inside of the [`InboxLayer`].
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_service<S>(
        self,
        service: S,
        shutdown: CancellationToken,
    ) -> Result<(), ConsumerError>
    where
        S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + 'static,
    {
        let reporter = self.reporter.clone();
        let _stopped = reporter.stopped_on_drop();
        let (jetstream, config) = (self.jetstream.clone(), self.config.clone());
        tokio::select! {
            ended = self.serve(service, shutdown) => ended,
            never = reporter.measure(&jetstream, &config) => match never {},
        }
    }

    async fn serve<S>(self, service: S, shutdown: CancellationToken) -> Result<(), ConsumerError>
    where
        S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + 'static,
    {
        let name = self.config.name.clone();
        let worker = Worker {
            service,
            rules: Rules {
                store: self.store.clone(),
                suspects: Suspects::new(self.store.clone()),
                config: self.config.clone(),
                reporter: self.reporter.clone(),
            },
        };
        let mut running = Running::new(worker, self.client.clone());
        let mut waits = Waits::new();
        let mut trouble: Option<String> = None;
        loop {
            let ended = tokio::select! {
                opened = self.open() => match opened {
                    Ok((stream, subscription)) => {
                        if trouble.take().is_some() {
                            tracing::info!(consumer = name, "connected again");
                        }
                        waits = Waits::new();
                        self.reporter.connected(self.pinned());
                        running.run(subscription, &shutdown).await.map(|()| stream)
                    }
                    Err(NotNow::Never(error)) => return Err(error),
                    Err(NotNow::Later(reason)) => Err(Ended(reason)),
                },
                () = shutdown.cancelled() => return Ok(()),
            };
            let reason = match ended {
                Ok(stream) => {
                    running.finish().await;
                    if self.pinned() {
                        // So that another process need not wait until the pin has expired.
                        let unpinned = stream.unpin_consumer(&name, durable::GROUP);
                        let _ = tokio::time::timeout(Duration::from_secs(2), unpinned).await;
                    }
                    tracing::info!(consumer = name, "stopped");
                    return Ok(());
                }
                Err(Ended(reason)) => reason,
            };
            self.reporter.away(&reason);
            if trouble.as_ref() != Some(&reason) {
                tracing::warn!(consumer = name, reason, "waiting for the broker");
                self.reporter.error(None, &reason);
                trouble = Some(reason);
            }
            // What is held goes on meanwhile.
            if running.wait(waits.next(), &shutdown).await {
                running.finish().await;
                return Ok(());
            }
        }
    }

    async fn open(&self) -> Result<(jetstream::stream::Stream, Subscription), NotNow> {
        // Asked first: before it has answered, the server's version is not known.
        let stream = durable::stream(&self.jetstream, &self.config).await?;
        let (pinned, ordered) = (self.pinned(), self.ordered());
        let consumer = durable::ensure(&stream, &self.config, pinned).await?;
        let told = self.reporter.clone();
        let subscription =
            Subscription::open(&stream, &consumer, &self.config, ordered, pinned, told)
                .await
                .map_err(|error| NotNow::Later(error.to_string()))?;
        if self.config.order == Order::Key && !ordered {
            tracing::warn!(
                consumer = self.config.name,
                "this nats-server is older than 2.14: after a crash or a lost connection, events of a key can come out of order"
            );
        }
        Ok((stream, subscription))
    }

    fn pinned(&self) -> bool {
        self.config.order == Order::Key && self.client.is_server_compatible(2, 11, 0)
    }

    fn ordered(&self) -> bool {
        self.config.order == Order::Key && self.client.is_server_compatible(2, 14, 0)
    }
}
