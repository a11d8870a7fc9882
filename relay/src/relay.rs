//! A relay: stands by until it holds the lease, and then leads until it is told to stop.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::backlog::measure;
use crate::backoff::Backoff;
use crate::broker::Broker;
use crate::config::{ConfigError, RelayConfig, without_secrets};
use crate::cursor::Cursor;
use crate::error::{RelayError, full_text};
use crate::health::{Observer, RelayState};
use crate::lease::{Acquired, Lease, LeaseError, Registry};
use crate::letters::Letters;
use crate::retention::remove_old_rows;
use crate::sabotage::Protections;
use crate::session::{Database, SessionError};
use crate::share::Share;
use crate::shipper::Shipper;

/// The server ends a statement that nobody waits for any more after this long, if it does not notice earlier that
/// the client is gone.
const ABANDONED: Duration = Duration::from_secs(600);
/// The cursor is written at most this often.
const SAVE_INTERVAL: Duration = Duration::from_millis(100);
/// How often a standby looks whether the lease is free, at the longest.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);

/// How long a free lease is left to less busy processes.
const COURTESY: Duration = Duration::from_secs(1);

/// Ships the events of one outbox.
pub struct Relay {
    config: RelayConfig,
    database: Database,
    share: Arc<Share>,
    observer: Observer,
    protections: Protections,
}

/// Why leading, or standing by, came to its end.
enum Ended {
    Stopped,
    /// Another process was asked to lead instead.
    HandedOver,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Relay {
    /// A relay with these settings. Connects to nothing yet.
    ///
    /// # Errors
    /// [`RelayError::Config`] or [`RelayError::Url`], with the setting that cannot be used.
    pub fn new(config: RelayConfig) -> Result<Self, RelayError> {
        Self::sharing(config, Share::new())
    }

    /// One that shares outboxes with others.
    pub(crate) fn sharing(config: RelayConfig, share: Arc<Share>) -> Result<Self, RelayError> {
        config.validate().map_err(|error: ConfigError| RelayError::Config(error))?;
        let database =
            Database::new(&config.database_url, &format!("pillarbox relay {}", config.name))
                .map_err(|error| RelayError::session(&config.database_url, error))?
                .statement_timeout(ABANDONED);
        let outbox = format!("{}/{}", database.name(), config.schema);
        let observer = Observer::new(&config.name, &outbox);
        Ok(Self { config, database, share, observer, protections: Protections::default() })
    }

    /// Takes a protection away, for a fault run that shows that it would be noticed. Loses events.
    #[cfg(feature = "sabotage")]
    #[doc(hidden)]
    #[must_use]
    pub fn without(mut self, protection: crate::Protection) -> Self {
        self.protections = Protections::without(protection);
        self
    }

    /// How this relay stands, now and whenever that changes. Keeps its last value when the relay has ended.
    pub fn state(&self) -> watch::Receiver<RelayState> {
        self.observer.state()
    }

    /// Runs until `shutdown` is cancelled: stops reading, waits for acknowledgements up to
    /// `shutdown_timeout_ms`, writes the cursor and releases the lease.
    ///
    /// An outage of the database or the broker is waited out, with one log line when it begins and one when
    /// it ends. Dropping the future stops at once; the lease then expires by itself, and what was under way
    /// is shipped again by whoever takes over.
    ///
    /// # Errors
    /// Only before the first event: [`RelayError::Url`], and [`RelayError::Session`] where the connection leads through
    /// a pooler in transaction mode; others only with `fail_fast`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RelayError> {
        let _stopped = self.observer.until_dropped();
        let mut measuring = JoinSet::new();
        measuring.spawn(measure(self.config.clone(), self.database.clone(), self.observer.clone()));
        let mut broker = None;
        let mut health = Health { backoff: Backoff::new(), trouble: None, started: false };
        loop {
            let error = tokio::select! {
                ended = self.session(&mut broker, &mut health, &shutdown) => match ended {
                    Ok(Ended::Stopped) => return Ok(()),
                    Ok(Ended::HandedOver) => {
                        self.observer.standing_by(None);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            let pooled = matches!(error, RelayError::Session(SessionError::Pooled { .. }));
            if error.is_final()
                || (pooled && !health.started)
                || (self.config.fail_fast && !health.started)
            {
                return Err(error);
            }
            self.observer.trouble(&error);
            health.report(&self.config.name, &error);
            tokio::select! {
                () = sleep(health.backoff.wait()) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// From connecting to the end of the lease.
    async fn session(
        &self,
        broker: &mut Option<Broker>,
        health: &mut Health,
        shutdown: &CancellationToken,
    ) -> Result<Ended, RelayError> {
        let mut registry = tokio::select! {
            registry = self.register(broker) => registry?,
            () = shutdown.cancelled() => return Ok(Ended::Stopped),
        };
        let Some(broker) = broker.clone() else {
            return Ok(Ended::Stopped);
        };
        let mut standing_by = false;
        let third = self.config.lease() / 3;
        let (mut attend_at, mut least) = (Instant::now(), None);
        let mut free_since = None;
        loop {
            if attend_at <= Instant::now() {
                attend_at = Instant::now() + third;
                least = registry.attend(self.share.leads()).await?;
            }
            let holder = registry.held_by_another().await?;
            if holder.is_none() && least.is_some_and(|least| least < self.share.leads()) {
                // A less busy process may want it.
                if free_since.get_or_insert_with(Instant::now).elapsed() < COURTESY {
                    sleep(STANDBY_INTERVAL / 5).await;
                    continue;
                }
            } else {
                free_since = None;
            }
            let free_in = match registry.acquire().await? {
                Acquired::Leader { lease, cursor } => {
                    health.well(&self.config.name);
                    self.observer.leading(lease.epoch());
                    return self.lead(lease, *cursor, broker, shutdown).await;
                }
                Acquired::Standby { registry: again, holder, free_in } => {
                    registry = again;
                    health.well(&self.config.name);
                    self.observer.standing_by(holder.clone());
                    if !standing_by {
                        tracing::info!(relay = self.config.name, holder, "standing by");
                        standing_by = true;
                    }
                    free_in
                }
            };
            // Not a moment later than the lease may expire.
            let look_in = STANDBY_INTERVAL.min(third).min(free_in + Duration::from_millis(5));
            tokio::select! {
                () = sleep(look_in) => {}
                () = shutdown.cancelled() => {
                    registry.leave().await?;
                    return Ok(Ended::Stopped);
                }
            }
        }
    }

    /// Connects to the broker and to the database, and makes sure that this is a primary with an outbox.
    async fn register(&self, broker: &mut Option<Broker>) -> Result<Registry, RelayError> {
        let (mut connection, _) = self
            .database
            .direct()
            .await
            .map_err(|error| RelayError::session(&self.config.database_url, error))?;
        self.check(&mut connection).await?;
        if broker.is_none() {
            *broker = Some(Broker::connect(&self.config, &self.observer).await?);
        }
        let RelayConfig { schema, name, .. } = &self.config;
        let registry =
            Registry::open(connection, schema, name, &self.share.holder, self.config.lease());
        Ok(registry.await?.under(self.protections))
    }

    async fn check(&self, connection: &mut PgConnection) -> Result<(), RelayError> {
        let (schema, url) =
            (self.config.schema.clone(), without_secrets(&self.config.database_url));
        let sql = format!(
            "select pg_is_in_recovery(), to_regclass('{schema}.outbox') is not null \
             and to_regclass('{schema}.relay') is not null"
        );
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(connection).await?;
        let (in_recovery, migrated): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
        if in_recovery {
            return Err(RelayError::Standby { url });
        }
        if !migrated {
            return Err(RelayError::NotMigrated { schema, url });
        }
        Ok(())
    }

    /// Ships while the lease holds. The only writer of the cursor.
    async fn lead(
        &self,
        mut lease: Lease,
        cursor: Cursor,
        broker: Broker,
        shutdown: &CancellationToken,
    ) -> Result<Ended, RelayError> {
        let _leading = self.share.lead();
        let stop = shutdown.child_token();
        tracing::info!(
            relay = self.config.name,
            epoch = lease.epoch(),
            holder = self.share.holder,
            "leading"
        );
        let (progress, mut reached) = watch::channel(cursor);
        let (letters, mut requests) = Letters::channel();
        let shipper = Shipper {
            config: self.config.clone(),
            database: self.database.clone(),
            broker,
            progress,
            letters,
            shutdown: stop.clone(),
            observer: self.observer.clone(),
            protections: self.protections,
        };
        let mut shipping = JoinSet::new();
        shipping.spawn(shipper.run());
        let mut cleaning = JoinSet::new();
        cleaning.spawn(remove_old_rows(
            self.config.clone(),
            self.database.clone(),
            self.observer.clone(),
        ));

        let third = lease.length() / 3;
        let mut renew_at = Instant::now() + third;
        let mut save_at = Instant::now();
        let mut unsaved = false;
        let mut stop_at: Option<Instant> = None;
        loop {
            let far = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                biased;
                () = sleep_until(lease.valid_until()) => return Err(LeaseError::Expired.into()),
                () = sleep_until(renew_at) => {
                    lease.renew().await?;
                    renew_at = Instant::now() + third;
                    let least = lease.attend(self.share.leads()).await?;
                    if self.share.hands_over(least, lease.length() / 2) {
                        tracing::info!(relay = self.config.name, "handing over to a less busy process");
                        stop.cancel();
                    }
                }
                Some(request) = requests.recv() => {
                    lease.answer(request, &self.config).await?;
                }
                Ok(()) = reached.changed(), if !unsaved => unsaved = true,
                () = sleep_until(save_at), if unsaved => {
                    let cursor = reached.borrow_and_update().clone();
                    lease.save(&cursor).await?;
                    unsaved = false;
                    save_at = Instant::now() + SAVE_INTERVAL;
                }
                ended = shipping.join_next() => {
                    match ended {
                        Some(Ok(shipped)) => shipped?,
                        _ => return Err(RelayError::Database(sqlx::Error::WorkerCrashed)),
                    }
                    break;
                }
                () = stop.cancelled(), if stop_at.is_none() => {
                    tracing::info!(relay = self.config.name, "stopping");
                    if shutdown.is_cancelled() {
                        self.observer.stopping();
                    }
                    stop_at = Some(Instant::now() + self.config.shutdown_timeout());
                }
                () = sleep_until(stop_at.unwrap_or(far)), if stop_at.is_some() => {
                    tracing::warn!(relay = self.config.name, "stopped before everything was acknowledged; it will be shipped again");
                    shipping.shutdown().await;
                    break;
                }
            }
        }
        let cursor = reached.borrow().clone();
        lease.save(&cursor).await?;
        lease.release(shutdown.is_cancelled()).await?;
        tracing::info!(relay = self.config.name, "stopped");
        Ok(if shutdown.is_cancelled() { Ended::Stopped } else { Ended::HandedOver })
    }
}

/// What has been said about the relay's troubles, so that each is said once.
struct Health {
    backoff: Backoff,
    trouble: Option<String>,
    started: bool,
}

impl Health {
    fn report(&mut self, relay: &str, error: &RelayError) {
        let text = full_text(error);
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(relay, error = text, "waiting: events stay in the outbox");
            self.trouble = Some(text);
        }
    }

    fn well(&mut self, relay: &str) {
        self.started = true;
        self.backoff = Backoff::new();
        if self.trouble.take().is_some() {
            tracing::info!(relay, "the trouble is over");
        }
    }
}
