//! The consumer, which a service runs.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use pillarbox_event::FromEvent;
use pillarbox_inbox::batch::IntoBatchHandler;
use pillarbox_inbox::handler::{FromHandling, IntoHandler};
use pillarbox_inbox::router::{HandlerOfEach, Handlers};
use pillarbox_inbox::source::{
    DeliveryService, HandlerTimeout, Judge, Killers, RunBatch, Store, keep_removing,
};
use pillarbox_inbox::{DeadLetters, InboxError, InboxLayer, Router};
use pillarbox_store::full_text;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower_layer::Layer;

use crate::config::{ConsumerConfig, HandlingOrder};
use crate::control::Member;
use crate::driver::Driver;
use crate::durable::NotNow;
use crate::endings::Endings;
use crate::error::ConsumerError;
use crate::journal::Journal;
use crate::measure::measure;
use crate::partitions::assignment::Assignment;
use crate::partitions::messages::Opener;
use crate::partitions::unassigned::look_out;
use crate::reader::{How, Reader};
use crate::scheduler::Controls;
use crate::status::{Reporter, Watch};
use crate::worker::Worker;

/// How long to wait before asking a database again that did not answer at the start.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Passes the events of a durable JetStream consumer to their handlers, once each.
///
/// ```no_run
/// # use pillarbox_consumer::{Consumer, ConsumerError};
/// # use pillarbox_event::RawEvent;
/// # use pillarbox_inbox::{HandlerError, Tx};
/// # use tokio_util::sync::CancellationToken;
/// # async fn charge(_: &mut Tx, _: RawEvent) -> Result<(), HandlerError> { Ok(()) }
/// # async fn example(
/// #     nats: async_nats::Client,
/// #     pool: sqlx::PgPool,
/// #     shutdown: CancellationToken,
/// # ) -> Result<(), ConsumerError> {
/// Consumer::new(nats, pool, "ORDERS", "payments")?
///     .on(charge)
///     .run(shutdown)
///     .await
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `run`"]
pub struct Consumer {
    client: async_nats::Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) store: Store,
    pub(crate) config: Arc<ConsumerConfig>,
    reporter: Reporter,
    reader: Reader,
    router: Router,
    /// The handlers, and the topics from which the filters follow.
    topics: Arc<[(&'static str, &'static str)]>,
}

impl Consumer {
    /// Makes a consumer of this name that reads this stream, with the [default settings](ConsumerConfig). It records
    /// handled events in the database of `pool`, which should have at least
    /// [`concurrency`](ConsumerConfig::concurrency) connections. This neither connects to the broker nor queries the
    /// database.
    ///
    /// # Errors
    /// [`ConsumerError::Config`] if the stream or the name cannot be used.
    pub fn new(
        client: async_nats::Client,
        pool: PgPool,
        stream: impl Into<String>,
        name: impl Into<String>,
    ) -> Result<Self, ConsumerError> {
        Self::with_config(client, pool, ConsumerConfig::new(stream, name))
    }

    /// Makes a consumer with these settings, like [`new`](Self::new).
    ///
    /// # Errors
    /// [`ConsumerError::Config`], with the setting that cannot be used.
    pub fn with_config(
        client: async_nats::Client,
        pool: PgPool,
        config: ConsumerConfig,
    ) -> Result<Self, ConsumerError> {
        config.validate()?;
        // A handler is dropped before the database would end its idle transaction or one of its statements.
        let longest = config.handler_timeout + Duration::from_secs(2);
        let store = Store::new(pool, &config.name, &config.schema, Some(longest))?
            .keeping()
            .keeping_keys(config.order.keeps_keys(), config.order == HandlingOrder::Strict)
            .of_stream(&config.stream);
        let jetstream = config.context(client.clone());
        let reporter = Reporter::new(&config.name, &config.stream);
        let config = Arc::new(config);
        let reader = Reader::new(client.clone(), None, config.clone());
        Ok(Self {
            client,
            jetstream,
            store,
            config,
            reporter,
            reader,
            router: Router::new(),
            topics: Arc::default(),
        })
    }

    /// Adds a handler: see [`Router::on`].
    pub fn on<E: FromHandling, Kind>(self, handler: impl IntoHandler<E, Kind>) -> Self {
        Self { router: self.router.on(handler), ..self }
    }

    /// Adds one handler for several types of events: see [`Router::on_each`].
    pub fn on_each<Events>(self, handler: impl HandlerOfEach<Events>) -> Self {
        Self { router: self.router.on_each(handler), ..self }
    }

    /// Adds several handlers that belong together, such as those of a saga: see [`Router::with`].
    pub fn with(self, handlers: impl Handlers) -> Self {
        Self { router: self.router.with(handlers), ..self }
    }

    /// Adds a handler that takes up to [`batch_size`](ConsumerConfig::batch_size) events at a time, of any keys, which
    /// are recorded by one statement and committed together: see [`Router::on_batch`]. Up to
    /// [`concurrency`](ConsumerConfig::concurrency) batches run at the same time.
    /// [`prefetch`](ConsumerConfig::prefetch) should be several times the size of a batch.
    ///
    /// An event that fails is isolated, and the rest are committed: see [`batch`](pillarbox_inbox::batch). Events that
    /// were delivered before run one by one.
    pub fn on_batch<E, Kind>(self, handler: impl IntoBatchHandler<E, Kind>) -> Self
    where
        E: FromEvent + Send + Sync + 'static,
    {
        Self { router: self.router.on_batch(handler), ..self }
    }

    /// Treats events of types without a handler as handled. Otherwise such an event becomes a dead letter.
    pub fn ignore_others(self) -> Self {
        Self { router: self.router.ignore_others(), ..self }
    }

    /// Takes the handlers of this router instead of those that were added before.
    pub fn router(self, router: Router) -> Self {
        Self { router, ..self }
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
    /// let status = consumer.status();
    /// let running = tokio::spawn(consumer.run(Default::default()));
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
    /// # async fn example(consumer: Consumer) -> Result<(), Box<dyn std::error::Error>> {
    /// let letters = consumer.dead_letters();
    /// let running = tokio::spawn(consumer.run(Default::default()));
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

    /// The [`InboxLayer`] that [`run`](Self::run) puts around the handlers, for [`run_service`](Self::run_service).
    pub fn layer(&self) -> InboxLayer {
        InboxLayer::of(self.store.clone())
    }

    /// Creates the durable consumers that are missing, checks those that exist, as [`run`](Self::run) does when it
    /// starts, and returns. Call it in a deployment step that has the right to create consumers on the broker. The
    /// service itself then does not need this right, which is dangerous: whoever may create a consumer can make it
    /// deliver to another user's inbox. Add the handlers before this call, because the filters follow from them.
    ///
    /// It tries once, and may take a few seconds for each request to the broker. If it is cancelled, it may have
    /// created some of the durable consumers; the next call creates the others.
    ///
    /// # Errors
    /// [`ConsumerError::NotPrepared`] if the broker or the database fails or refuses a request.
    /// [`ConsumerError::Inbox`] if the database cannot be reached, or is behind a pooler that shares its sessions.
    /// Otherwise as [`run`](Self::run).
    pub async fn prepare(&self) -> Result<(), ConsumerError> {
        self.router.check()?;
        let consumer = self.clone().filtered()?;
        self.store.check_sessions().await?;
        let prepared = consumer.opener().prepare_and_check().await;
        prepared.map_err(|not| match not {
            NotNow::Never(error) => error,
            NotNow::Later(reason) => ConsumerError::NotPrepared {
                stream: self.config.stream.clone(),
                name: self.config.name.clone(),
                reason,
            },
        })
    }

    /// The same consumer with the filters that follow from its handlers, unless others are set.
    fn filtered(mut self) -> Result<Self, ConsumerError> {
        let filters = match &*self.config.filter_subjects {
            [] => {
                self.topics = self.router.handler_topics().into();
                self.router.topics().unwrap_or_default().into_iter().map(str::to_owned).collect()
            }
            // A filter for everything is left out, because the server reports a consumer without filters, and the two
            // would differ.
            [all] if all == ">" => Vec::new(),
            _ => return Ok(self),
        };
        let config = ConsumerConfig { filter_subjects: filters, ..(*self.config).clone() };
        config.validate()?;
        self.config = Arc::new(config);
        Ok(self)
    }

    fn opener(&self) -> Opener {
        Opener::new(
            self.client.clone(),
            self.jetstream.clone(),
            self.store.clone(),
            self.config.clone(),
            self.reporter.clone(),
            self.reader.clone(),
            self.topics.clone(),
        )
    }

    /// Hands events to their handlers until `shutdown` is cancelled. Then running handlers may finish for up to
    /// [`shutdown_timeout`](ConsumerConfig::shutdown_timeout). It returns at most ten seconds after that, even if the
    /// broker or the database does not answer.
    ///
    /// The consumer waits out outages of the database and the broker, however long they last. Dropping the future stops
    /// it at once: running handlers are rolled back, and their events are delivered again.
    ///
    /// Meanwhile it removes the rows of events that were handled longer than [`retention`](ConsumerConfig::retention)
    /// ago.
    ///
    /// # Errors
    /// [`ConsumerError::NoHandler`], [`ConsumerError::SecondHandler`], [`ConsumerError::NotInStream`],
    /// [`ConsumerError::Differs`], [`ConsumerError::Retention`], [`ConsumerError::Forgotten`]; with partitions also
    /// [`ConsumerError::Unread`].
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ConsumerError> {
        self.router.check()?;
        if self.router.is_empty() {
            return Err(ConsumerError::NoHandler { name: self.config.name.clone() });
        }
        let consumer = self.filtered()?;
        let (router, longest) = (consumer.router.clone(), consumer.config.handler_timeout);
        let batches = router.batches(longest, consumer.config.order.keeps_keys());
        let service = consumer.layer().layer(HandlerTimeout::new(router, longest));
        consumer.run_all(service, batches, shutdown).await
    }

    /// Like [`run`](Self::run), with a service that already contains this consumer's [`layer`](Self::layer), with other
    /// layers around it or inside of it. The consumer's own handlers and `handler_timeout` are not used: put a
    /// [`Router`] and tower's timeout inside that layer. The consumer reads all subjects of the stream, unless
    /// `filter_subjects` are set.
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
    pub async fn run_service(
        self,
        service: impl DeliveryService,
        shutdown: CancellationToken,
    ) -> Result<(), ConsumerError> {
        let consumer = Self { router: Router::new(), ..self }.filtered()?;
        consumer.run_all(service, None, shutdown).await
    }

    async fn run_all(
        self,
        service: impl DeliveryService,
        batches: Option<Arc<dyn RunBatch>>,
        shutdown: CancellationToken,
    ) -> Result<(), ConsumerError> {
        let reporter = self.reporter.clone();
        let _stopped = reporter.stopped_on_drop();
        let (jetstream, config) = (self.jetstream.clone(), self.config.clone());
        let measured = measure(&jetstream, &config, &reporter);
        let removing = keep_removing(self.store.clone(), config.retention);
        let store = self.store.clone();
        let unassigned = look_out(&jetstream, &store, &config, &reporter);
        let member = Member::new(store.clone(), &config, reporter.clone());
        let controls = member.controls();
        let ended = tokio::select! {
            ended = self.serve(service, batches, controls, shutdown) => ended,
            never = member.beat() => match never {},
            never = measured => match never {},
            never = removing => match never {},
            never = unassigned => match never {},
        };
        member.leave().await;
        ended
    }

    async fn serve(
        self,
        service: impl DeliveryService,
        batches: Option<Arc<dyn RunBatch>>,
        controls: watch::Receiver<Option<Controls>>,
        shutdown: CancellationToken,
    ) -> Result<(), ConsumerError> {
        // Before anything is opened that reads from the database or writes to it.
        if !self.has_own_sessions(&shutdown).await? {
            return Ok(());
        }
        let mut assignment = Assignment::open(self.opener(), self.store.clone(), &self.config);
        let worker = Worker {
            service,
            batches,
            endings: Endings {
                store: self.store.clone(),
                killers: Killers::new(self.store.clone(), self.config.handler_timeout),
                judge: Judge::new(self.store.clone()),
                config: self.config.clone(),
                reporter: self.reporter.clone(),
                journal: Journal::new(),
            },
        };
        let mut driver = Driver::new(worker, self.reader.clone(), controls);
        let ended = driver.run(&mut assignment, &shutdown).await;
        driver.finish().await;
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
