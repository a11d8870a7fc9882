//! The consumer, which a service runs.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use pillarbox_event::FromEvent;
use pillarbox_inbox::source::{
    HandlerTimeout, Judge, Killers, RunBatch, Store, keep_removing, one_by_one, run_batches,
};
use pillarbox_inbox::{
    BatchHandler, DeadLetters, Delivery, Handling, InboxError, InboxLayer, Outcome, Router,
};
use pillarbox_store::full_text;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tower_layer::Layer;
use tower_service::Service;

use crate::config::{ConsumerConfig, Order};
use crate::durable::NotNow;
use crate::error::{BoxError, ConsumerError};
use crate::journal::Journal;
use crate::measure::measure;
use crate::partitions::assignment::Assignment;
use crate::partitions::messages::Opener;
use crate::partitions::unassigned::look_out;
use crate::reader::{How, Reader};
use crate::running::Running;
use crate::status::{Reporter, Watch};
use crate::worker::{Rules, Worker};

/// How long to wait before asking a database again that did not answer at the start.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Hands the events of a durable JetStream consumer to a handler, once each.
#[derive(Clone, Debug)]
pub struct Consumer {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    pub(crate) store: Store,
    config: Arc<ConsumerConfig>,
    reporter: Reporter,
    reader: Reader,
}

impl Consumer {
    /// Makes a consumer with these settings. It records handled events in the database of `pool`, which should have at
    /// least `concurrency` connections. This neither connects to the broker nor queries the database.
    ///
    /// # Errors
    /// [`ConsumerError::Config`], with the setting that cannot be used.
    pub fn new(
        client: async_nats::Client,
        pool: PgPool,
        config: ConsumerConfig,
    ) -> Result<Self, ConsumerError> {
        config.validate()?;
        // A handler is dropped before the database would end its idle transaction or one of its statements.
        let longest = config.handler_timeout() + Duration::from_secs(2);
        let store = Store::new(pool, &config.name, &config.schema, Some(longest))?
            .keeping()
            .keeping_keys(config.order.keeps_keys(), config.order == Order::Strict)
            .of_stream(&config.stream);
        let jetstream = config.context(client.clone());
        let reporter = Reporter::new(&config.name, &config.stream);
        let config = Arc::new(config);
        let reader = Reader::new(client.clone(), None, config.clone());
        Ok(Self { client, jetstream, store, config, reporter, reader })
    }

    /// Makes the consumer read over its own connection, opened with these options to these servers. They should be the
    /// servers of the service's client. A message that cannot be parsed ends the connection that it arrives on, so it
    /// is better not to read over the service's client.
    ///
    /// Without this call, the consumer opens such a connection by itself if the servers require neither a login nor
    /// TLS. If they do, it reads over the service's client.
    ///
    /// # Errors
    /// An [`std::io::Error`] if an address cannot be parsed or resolved.
    pub fn reading_with(
        mut self,
        options: async_nats::ConnectOptions,
        servers: impl async_nats::ToServerAddrs,
    ) -> std::io::Result<Self> {
        let servers = servers.to_server_addrs()?.collect();
        let how = Some(How { options, servers });
        self.reader = Reader::new(self.client.clone(), how, self.config.clone());
        Ok(self)
    }

    /// The consumer's status, which can be read while it runs. Keep the [`Watch`], and call its [`get`](Watch::get) in
    /// a health endpoint.
    ///
    /// ```no_run
    /// # async fn example(consumer: pillarbox_consumer::Consumer) -> Result<(), Box<dyn std::error::Error>> {
    /// # use pillarbox_inbox::Router;
    /// let status = consumer.status();
    /// let running = tokio::spawn(consumer.run(Router::new(), Default::default()));
    /// println!("{}", serde_json::to_string(&status.get())?); // {"consumer":"payments", … "state":"active", …}
    /// # running.await??; Ok(()) }
    /// ```
    ///
    /// Clones of a consumer share one status. To run two consumers of one name in a process, make two with
    /// [`new`](Self::new).
    pub fn status(&self) -> Watch {
        self.reporter.watch()
    }

    /// The consumer's dead letters. A letter that is [retried](DeadLetters::retry) while the consumer runs, here or in
    /// another process, goes through its handler.
    ///
    /// ```no_run
    /// # use pillarbox_consumer::Consumer;
    /// # use pillarbox_inbox::Router;
    /// # async fn example(consumer: Consumer, router: Router) -> Result<(), Box<dyn std::error::Error>> {
    /// let letters = consumer.dead_letters();
    /// let running = tokio::spawn(consumer.run(router, Default::default()));
    /// for letter in letters.list(100).await? {
    ///     println!("{} {}: {}", letter.event_id, letter.reason, letter.error);
    /// }
    /// letters.discard("0199b0c5-5c7e-7000-8000-000000000001").await?;
    /// println!("{} are tried again", letters.retry_all().await?);
    /// # running.await??; Ok(()) }
    /// ```
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters::of(self.store.clone())
    }

    /// The [`InboxLayer`] that [`run`](Self::run) puts around its service, for [`run_service`](Self::run_service).
    pub fn layer(&self) -> InboxLayer {
        InboxLayer::of(self.store.clone())
    }

    /// Creates the durable consumers that are missing, checks those that exist, as [`run`](Self::run) does at its
    /// start, and returns. Call it in a deployment step that has the right to create consumers on the broker. Then the
    /// service itself does not need this right. That matters because whoever may create a consumer can make it deliver
    /// to another user's inbox.
    ///
    /// It tries once, and may take a few seconds for each request to the broker. If it is cancelled, it may have
    /// created some of the durable consumers; the next call creates the others.
    ///
    /// # Errors
    /// [`ConsumerError::NotPrepared`] if the broker or the database fails or refuses a request.
    /// [`ConsumerError::Inbox`] if the database cannot be reached, or is behind a pooler that shares its sessions.
    /// Otherwise as [`run`](Self::run).
    pub async fn prepare(&self) -> Result<(), ConsumerError> {
        self.store.check_sessions().await?;
        let prepared = self.opener().prepare_and_check().await;
        prepared.map_err(|not| match not {
            NotNow::Never(error) => error,
            NotNow::Later(reason) => ConsumerError::NotPrepared {
                stream: self.config.stream.clone(),
                name: self.config.name.clone(),
                reason,
            },
        })
    }

    fn opener(&self) -> Opener {
        Opener::new(
            self.client.clone(),
            self.jetstream.clone(),
            self.store.clone(),
            self.config.clone(),
            self.reporter.clone(),
            self.reader.clone(),
        )
    }

    /// Handles events with `service` until `shutdown` is cancelled. Then running handlers may finish for up to
    /// `shutdown_timeout_ms`. It returns at most ten seconds after that, even if the broker or the database does not
    /// answer. A [`Router`] is such a service, also inside layers that should see the transaction.
    ///
    /// The consumer waits out outages of the database and the broker, however long they last. Dropping the future stops
    /// it at once: running handlers are rolled back, and their events are delivered again.
    ///
    /// Meanwhile it removes the rows of events that were handled longer than `retention_s` ago.
    ///
    /// # Errors
    /// [`ConsumerError::Differs`], [`ConsumerError::Retention`], [`ConsumerError::Forgotten`]; with partitions also [`ConsumerError::Unread`].
    pub async fn run<S>(self, service: S, shutdown: CancellationToken) -> Result<(), ConsumerError>
    where
        S: Service<Handling, Response = (), Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + 'static,
    {
        let longest = self.config.handler_timeout();
        let service = HandlerTimeout::new(service, longest);
        let service = self.layer().layer(service);
        self.run_service(service, shutdown).await
    }

    /// Like [`run`](Self::run), with a handler of many events at a time: up to `batch_size` events of any keys,
    /// recorded by one statement and committed together. Up to `concurrency` batches run at the same time. `prefetch`
    /// should be several times `batch_size`.
    ///
    /// An event that fails is isolated, and the rest are committed: see [`batch`](pillarbox_inbox::batch). Events that
    /// were delivered before run one by one.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_batches<H, E>(
        self,
        handler: H,
        shutdown: CancellationToken,
    ) -> Result<(), ConsumerError>
    where
        H: BatchHandler<E>,
        E: FromEvent + Send + Sync + 'static,
    {
        let (handler, longest) = (Arc::new(handler), self.config.handler_timeout());
        let one = Router::new().on(one_by_one(handler.clone()));
        let service = self.layer().layer(HandlerTimeout::new(one, longest));
        let keeps_keys = self.config.order.keeps_keys();
        let batches = run_batches(handler, longest, keeps_keys);
        self.run_all(service, Some(batches), shutdown).await
    }

    /// Like [`run`](Self::run), with a service that already contains this consumer's [`layer`](Self::layer), with other
    /// layers around it. `handler_timeout_ms` is not applied: put tower's timeout inside that layer.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use pillarbox_consumer::Consumer;
    /// # use pillarbox_inbox::{Delivery, Router};
    /// # use tower::ServiceBuilder;
    /// # async fn example(consumer: Consumer, router: Router) -> Result<(), Box<dyn std::error::Error>> {
    /// let service = ServiceBuilder::new()
    ///     .concurrency_limit(2) // shared with other consumers, for instance
    ///     .layer(consumer.layer())
    ///     .timeout(Duration::from_secs(5)) // rolls back
    ///     .service(router);
    /// consumer.run_service(service, Default::default()).await?;
    /// # Ok(()) }
    /// ```
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
        self.run_all(service, None, shutdown).await
    }

    async fn run_all<S>(
        self,
        service: S,
        batches: Option<Arc<dyn RunBatch>>,
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
        let measured = measure(&jetstream, &config, &reporter);
        let removing = keep_removing(self.store.clone(), config.retention());
        let store = self.store.clone();
        let unassigned = look_out(&jetstream, &store, &config, &reporter);
        tokio::select! {
            ended = self.serve(service, batches, shutdown) => ended,
            never = measured => match never {},
            never = removing => match never {},
            never = unassigned => match never {},
        }
    }

    async fn serve<S>(
        self,
        service: S,
        batches: Option<Arc<dyn RunBatch>>,
        shutdown: CancellationToken,
    ) -> Result<(), ConsumerError>
    where
        S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send>
            + Clone
            + Send
            + 'static,
    {
        // Before anything is opened that reads from the database or writes to it.
        if !self.has_own_sessions(&shutdown).await? {
            return Ok(());
        }
        let mut assignment = Assignment::open(self.opener(), self.store.clone(), &self.config);
        let worker = Worker {
            service,
            batches,
            rules: Rules {
                store: self.store.clone(),
                killers: Killers::new(self.store.clone(), self.config.handler_timeout()),
                judge: Judge::new(self.store.clone()),
                config: self.config.clone(),
                reporter: self.reporter.clone(),
                journal: Journal::new(),
            },
        };
        let mut running = Running::new(worker, self.reader.clone());
        let ended = running.run(&mut assignment, &shutdown).await;
        running.finish().await;
        assignment.close().await;
        if ended.is_ok() {
            tracing::info!(consumer = self.config.name, "stopped");
        }
        ended
    }
}

impl Consumer {
    /// Waits until the database confirms that the pool's sessions are not shared and see all rows. `false` on shutdown.
    async fn has_own_sessions(&self, shutdown: &CancellationToken) -> Result<bool, ConsumerError> {
        loop {
            let error = tokio::select! {
                asked = self.store.check_sessions() => match asked {
                    Ok(()) => break,
                    Err(error) => error,
                },
                () = shutdown.cancelled() => return Ok(false),
            };
            if matches!(error, InboxError::Pooled(_) | InboxError::Hidden(_)) {
                return Err(error.into());
            }
            self.reporter.paused(Some(&full_text(&error)));
            tokio::select! {
                () = tokio::time::sleep(ASK_AGAIN) => {}
                () = shutdown.cancelled() => return Ok(false),
            }
        }
        self.reporter.paused(None);
        Ok(true)
    }
}
