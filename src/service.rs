//! One process with everything that a service runs: its HTTP server, its consumers and, if it has one, its relay.
//!
//! ```text
//!  start   HTTP and tasks at once ── preparations, until they succeed ── consumers, relays
//!  stop    HTTP and tasks ── then consumers ── then relays
//! ```
//!
//! Whatever can be reached is started, and the rest is waited for. A database or a broker that is down at the start is
//! an outage: it is logged once, `/readyz` says so, and the service continues by itself when it is over. The stop goes
//! the way of an event: first nothing new comes in, then what has come in is handled, and the relay ships meanwhile.
//!
//! ```no_run
//! use pillarbox::{Consumer, Event, Tx, inbox, service::Service};
//! # #[derive(Event, serde::Serialize, serde::Deserialize)]
//! # #[event(type = "order.placed", topic = "orders.placed", key = order)]
//! # struct OrderPlaced { order: i64 }
//! # async fn mail(tx: &mut Tx, placed: OrderPlaced) -> anyhow::Result<()> { Ok(()) }
//!
//! # async fn run() -> anyhow::Result<()> {
//! // Neither of these waits for its server.
//! let pool = sqlx::PgPool::connect_lazy("postgres://localhost/shop")?;
//! let nats = async_nats::ConnectOptions::new().retry_on_initial_connect().connect("localhost:4222").await?;
//! Service::new()
//!     .prepare("tables", pool.clone(), |pool| async move { inbox::migrate(&pool).await })
//!     .consumer(Consumer::new(nats, pool, "ORDERS", "mails")?.on(mail))
//!     .run_until_signal()
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! The guide `docs/guides/one-process.md` shows a whole `main`. `Service::http` needs the feature `axum`, and
//! `Service::relay` the feature `relay`.

mod error;
mod parts;
mod prepare;
mod readiness;
mod signals;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use pillarbox_consumer::Consumer;
use tokio_util::sync::CancellationToken;

use self::parts::{Part, Running, Stage};
use self::prepare::Preparation;
use self::signals::Signals;

pub use self::error::ServiceError;
pub use self::readiness::{Readiness, Ready};

/// How long a stop may take by default: less than the 30 s after which Kubernetes kills a process.
const STOP_WITHIN: Duration = Duration::from_secs(25);

/// The longest time that a stop may take.
const LONGEST_STOP: Duration = Duration::from_secs(86_400);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The parts of a service, in one process: see the [module](self).
#[must_use = "nothing happens before `run`"]
pub struct Service {
    parts: Vec<Part>,
    preparations: Vec<Preparation>,
    readiness: Readiness,
    stop_within: Duration,
}

impl Service {
    /// A service without parts.
    pub fn new() -> Self {
        Self {
            parts: Vec::new(),
            preparations: Vec::new(),
            readiness: Readiness::new(),
            stop_within: STOP_WITHIN,
        }
    }

    /// Adds something that must have succeeded before consumers and relays start, such as migrations or the declaration
    /// of a stream. `name` is for the log and for `/readyz`, and each try gets a clone of `with`. Preparations run one
    /// after the other, in the order in which they are added.
    ///
    /// If it fails, it is tried again, after 50 ms at first and 5 s at most, until it succeeds or the service stops. It
    /// must therefore be safe to repeat. An error that is certain to come again ends the service instead: a statement
    /// that Postgres refuses, a migration that has been changed, a stream with another setting.
    pub fn prepare<S, F, T, E>(
        mut self,
        name: impl Into<String>,
        with: S,
        prepare: impl Fn(S) -> F + Send + 'static,
    ) -> Self
    where
        S: Clone + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        self.preparations.push(Preparation::new(name.into(), with, prepare));
        self
    }

    /// Adds an HTTP server. It listens at once, before the preparations, so that probes are answered. When the service
    /// stops, it accepts no more connections and finishes the requests that are under way.
    ///
    /// Merge [`Readiness::routes`] into the router for `/readyz`.
    #[cfg(feature = "axum")]
    pub fn http(self, listener: tokio::net::TcpListener, app: axum::Router) -> Self {
        let server = move |stop: CancellationToken| async move {
            axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
        };
        self.part("http", Stage::First, false, server)
    }

    /// Adds any other future: another server, or a loop of the service's own. It starts at once, before the
    /// preparations, and must end when its token is cancelled, which happens together with the stop of the HTTP server.
    /// It may end earlier; only an error then ends the service.
    pub fn task<F, E>(
        self,
        name: impl Into<String>,
        task: impl FnOnce(CancellationToken) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        self.part(name, Stage::First, true, task)
    }

    /// Adds a consumer, with its handlers. It starts after the preparations and stops after the HTTP server.
    pub fn consumer(self, consumer: Consumer) -> Self {
        let status = consumer.status();
        let name = format!("consumer {}", status.get().consumer);
        self.readiness.watch_consumer(name.clone(), status);
        self.part(name, Stage::Consumers, false, move |stop| consumer.run(stop))
    }

    /// Adds a relay. It starts after the preparations and stops last. Several processes with a relay of one name share
    /// the work: one leads, the others stand by.
    #[cfg(feature = "relay")]
    pub fn relay(self, relay: pillarbox_relay::Relay) -> Self {
        let state = relay.state();
        let name = format!("relay {}", state.borrow().relay);
        self.readiness.watch_relay(name.clone(), state);
        self.part(name, Stage::Relays, false, move |stop| relay.run(stop))
    }

    /// Sets how long a stop may take in all; 25 s by default, a day at most. The HTTP server and tasks have the first
    /// 40 % of it, consumers until 80 %, and relays the rest. What has not ended by then is dropped: handlers are
    /// rolled back, and their events come again. (An HTTP request that is under way goes on until the process ends.)
    pub fn stop_within(self, limit: Duration) -> Self {
        Self { stop_within: limit.min(LONGEST_STOP), ..self }
    }

    /// Whether the service is ready, now and later. It may be asked for before parts are added. Cheap to clone.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    fn part<F, E>(
        mut self,
        name: impl Into<String>,
        stage: Stage,
        may_end: bool,
        run: impl FnOnce(CancellationToken) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        let run = Box::new(move |stop| -> BoxFuture<Result<(), BoxError>> {
            let running = run(stop);
            Box::pin(async move { running.await.map_err(Into::into) })
        });
        self.parts.push(Part { name: name.into(), stage, may_end, run });
        self
    }

    /// Runs everything until `stop` is cancelled or a part ends with an error, and then stops all parts in order,
    /// within [`stop_within`](Self::stop_within). It also returns when no part is left to run.
    ///
    /// Dropping the future ends all parts at once.
    ///
    /// # Errors
    /// [`ServiceError`]: the first error of a part. The others have been stopped in order by then.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ServiceError> {
        let Self { parts, preparations, readiness, stop_within } = self;
        let _stopped = readiness.stopped_on_drop();
        let (first, later): (Vec<_>, Vec<_>) =
            parts.into_iter().partition(|part| part.stage == Stage::First);
        let mut running = Running::default();
        running.start(first);
        let failed = running.until_stopped(preparations, later, &readiness, &stop).await;
        readiness.stopping();
        if let Some(error) = &failed {
            tracing::error!(error = pillarbox_store::full_text(error), "the service ends");
        } else {
            tracing::info!("the service stops");
        }
        let failed_late = running.stop(stop_within).await;
        failed.or(failed_late).map_or(Ok(()), Err)
    }

    /// [Runs](Self::run) until the process gets SIGTERM or SIGINT (ctrl-c). A second signal ends all parts at once.
    ///
    /// # Errors
    /// As [`run`](Self::run); [`ServiceError::Interrupted`] after a second signal; [`ServiceError::Signals`] if the
    /// system does not let the process listen to signals.
    pub async fn run_until_signal(self) -> Result<(), ServiceError> {
        let mut signals = Signals::new().map_err(ServiceError::Signals)?;
        let stop = CancellationToken::new();
        let running = self.run(stop.clone());
        tokio::pin!(running);
        tokio::select! {
            ended = &mut running => return ended,
            signal = signals.next() => tracing::info!(signal, "told to stop"),
        }
        stop.cancel();
        tokio::select! {
            ended = running => ended,
            _ = signals.next() => Err(ServiceError::Interrupted),
        }
    }
}

impl Default for Service {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<&str> = self.parts.iter().map(|part| &*part.name).collect();
        f.debug_struct("Service").field("parts", &parts).finish_non_exhaustive()
    }
}
