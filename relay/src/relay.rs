//! A relay: stands by until it holds the lease, and then leads until it is told to stop.

mod standby;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pillarbox_store::limit::limited;
use pillarbox_store::{Backoff, HiddenRows, full_text};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::backlog::measure;
use crate::broker::Broker;
use crate::config::{ConfigError, RelayConfig, without_secrets};
use crate::cursor::Cursor;
use crate::error::RelayError;
use crate::health::{Observer, RelayState};
use crate::lease::{Grant, Lease, LeaseError, Presence, Registry};
use crate::retention::remove_old_rows;
use crate::scheduled::release_due;
use crate::session::{Database, Patience, SessionError};
use crate::sharing::{CutOff, Process};
use crate::shipper::Shipper;

use self::standby::{Decision, Look, Standby};

/// After this time, the server cancels a statement whose client is gone, if it has not noticed that earlier.
const ABANDONED: Duration = Duration::from_secs(600);
/// The time limit for a statement that waits for nothing.
const ANSWER: Duration = Duration::from_secs(10);
/// The time limit for the last writes to the database after the shutdown timeout.
const LAST_WRITES: Duration = Duration::from_secs(2);
/// The cursor is written at most this often.
const SAVE_INTERVAL: Duration = Duration::from_millis(100);
/// The longest time between two looks of a standby at the lease.
const STANDBY_INTERVAL: Duration = Duration::from_millis(500);

/// Ships the events of one outbox.
pub struct Relay {
    config: RelayConfig,
    database: Database,
    process: Arc<Process>,
    observer: Observer,
    /// How long reading waits for the database. Kept from one session to the next.
    patience: Patience,
}

/// Why leading or standing by ended.
enum Ended {
    Stopped,
    /// This process handed the outbox over to another one.
    HandedOver,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Relay {
    /// The tables that a relay reads and writes, without their schema. The relay relies on finding every row that
    /// exists, so no policy may hide rows of these tables from the relay's role.
    pub const TABLES: [&str; 6] = [
        "outbox",
        "relay",
        "relay_checkpoint",
        "relay_member",
        "outbox_dead_letter",
        "outbox_scheduled",
    ];

    /// A relay with these settings. Connects to nothing yet.
    ///
    /// # Errors
    /// [`RelayError::Config`] or [`RelayError::Url`], with the setting that cannot be used.
    pub fn new(config: RelayConfig) -> Result<Self, RelayError> {
        Self::sharing(config, Process::new())
    }

    /// A relay of a process that may have several relays.
    pub(crate) fn sharing(config: RelayConfig, process: Arc<Process>) -> Result<Self, RelayError> {
        config.validate().map_err(|error: ConfigError| RelayError::Config(error))?;
        let database =
            Database::new(&config.database_url, &format!("pillarbox relay {}", config.name))
                .map_err(|error| RelayError::session(&config.database_url, error))?
                .statement_timeout(ABANDONED);
        let outbox = format!("{}/{}", database.name(), config.schema);
        let observer = Observer::new(&config.name, &outbox);
        Ok(Self { config, database, process, observer, patience: Patience::default() })
    }

    /// This relay's state, now and whenever it changes. Keeps its last value when the relay has ended.
    pub fn state(&self) -> watch::Receiver<RelayState> {
        self.observer.state()
    }

    /// Runs until `shutdown` is cancelled: stops reading, waits for acknowledgements up to
    /// [`shutdown_timeout`](RelayConfig::shutdown_timeout), writes the cursor and releases the lease.
    ///
    /// During an outage of the database or the broker, the relay waits. It logs one line when the outage begins and one
    /// when it ends. Dropping the future stops the relay at once. The lease then expires by itself, and the process
    /// that takes over ships again what was in flight.
    ///
    /// # Errors
    /// Only before the first event: [`RelayError::Config`], and [`RelayError::Session`] if the connection goes through
    /// a pooler in transaction mode. Other errors only with `fail_fast`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RelayError> {
        let _stopped = self.observer.until_dropped();
        let overdue = async {
            shutdown.cancelled().await;
            sleep(self.config.shutdown_timeout + LAST_WRITES).await;
        };
        tokio::select! {
            ended = self.sessions(&shutdown) => ended,
            () = overdue => {
                tracing::warn!(
                    relay = self.config.name,
                    "stopped without an answer of the database; the lease expires by itself"
                );
                Ok(())
            }
        }
    }

    /// Runs one session after another. Only progress makes the next wait short again. Otherwise a leader that fails at
    /// its first step would take the lease many times a second.
    async fn sessions(&self, shutdown: &CancellationToken) -> Result<(), RelayError> {
        let mut measuring = JoinSet::new();
        measuring.spawn(measure(self.config.clone(), self.database.clone(), self.observer.clone()));
        let mut broker = None;
        let (mut backoff, mut started) = (Backoff::default(), false);
        loop {
            let before = self.observer.progress();
            let error = match self.session(&mut broker, &mut started, shutdown).await {
                Ok(Ended::Stopped) => return Ok(()),
                Ok(Ended::HandedOver) => {
                    self.observer.standing_by(None);
                    continue;
                }
                Err(error) => error,
            };
            let pooled = matches!(error, RelayError::Session(SessionError::Pooled { .. }));
            if error.is_final() || (!started && (pooled || self.config.fail_fast)) {
                return Err(error);
            }
            if self.observer.progress() != before {
                backoff = Backoff::default();
            }
            self.observer.trouble(error.trouble_with(), full_text(&error));
            if unless_stopped(shutdown, sleep(backoff.wait())).await.is_none() {
                return Ok(());
            }
        }
    }

    /// From connecting to the end of the lease.
    async fn session(
        &self,
        broker: &mut Option<Broker>,
        started: &mut bool,
        shutdown: &CancellationToken,
    ) -> Result<Ended, RelayError> {
        let Some(registered) = unless_stopped(shutdown, self.register(broker)).await else {
            return Ok(Ended::Stopped);
        };
        let (mut registry, reading, broker) = registered?;
        let standing_by = self.stand_by(&mut registry, reading, started);
        let Some(granted) = unless_stopped(shutdown, standing_by).await else {
            // If this fails, the other processes forget this one by themselves.
            let limit = self.config.shutdown_timeout.min(LAST_WRITES);
            let _ = timeout(limit, registry.leave()).await;
            return Ok(Ended::Stopped);
        };
        let (grant, reading) = granted?;
        let Some(led) = unless_stopped(shutdown, registry.lead(grant)).await else {
            return Ok(Ended::Stopped);
        };
        let (lease, cursor) = led?;
        *started = true;
        self.observer.leading(lease.epoch());
        self.lead(lease, cursor, broker, reading, shutdown).await
    }

    /// Waits until this process is granted the lease. Returns the connection that it will read on, too.
    async fn stand_by(
        &self,
        registry: &mut Registry,
        reading: PgConnection,
        started: &mut bool,
    ) -> Result<(Grant, PgConnection), RelayError> {
        let third = self.config.lease / 3;
        let (mut attend_at, mut least_led) = (Instant::now(), None);
        let mut standby = Standby::default();
        let (mut reading, mut said) = (Some(reading), false);
        loop {
            if attend_at <= Instant::now() {
                attend_at = Instant::now() + third;
                least_led = registry.attend(self.presence()).await?;
            }
            let held = registry.held_by_another().await?;
            let look = Look {
                is_held: held.is_some(),
                least_led,
                leads: self.process.leads(),
                reaches_broker: self.observer.reaches_broker(),
            };
            let (holder, free_in) = match (standby.decide(look, Instant::now()), held) {
                (Decision::LeaveToOthers, _) => {
                    sleep(STANDBY_INTERVAL / 5).await;
                    continue;
                }
                (Decision::Ask, _) => {
                    // A process that cannot read must not take the lease from one that can.
                    let open = match reading.take() {
                        Some(open) => open,
                        None => {
                            let opened = self.database.connect().await;
                            opened.map_err(|error| self.session_error(error))?
                        }
                    };
                    match registry.ask().await? {
                        Some(grant) => return Ok((grant, open)),
                        // Another process was faster.
                        None => (None, self.config.lease),
                    }
                }
                (Decision::Wait, Some((holder, free_in))) => (Some(holder), free_in),
                (Decision::Wait, None) => (None, third),
            };
            // A standby needs one connection.
            reading = None;
            *started = true;
            self.observer.standing_by(holder.clone());
            if !said {
                tracing::info!(relay = self.config.name, holder, "standing by");
                said = true;
            }
            // Look again as soon as the lease may have expired.
            sleep(STANDBY_INTERVAL.min(third).min(free_in + Duration::from_millis(5))).await;
        }
    }

    /// Connects to the broker and to the database, and checks that the database is a primary with an outbox. A leader
    /// reads on the second connection.
    async fn register(
        &self,
        broker: &mut Option<Broker>,
    ) -> Result<(Registry, PgConnection, Broker), RelayError> {
        let (mut connection, reading) =
            self.database.direct().await.map_err(|error| self.session_error(error))?;
        self.check(&mut connection).await?;
        let broker = match broker {
            Some(broker) => broker.clone(),
            None => broker.insert(Broker::connect(&self.config, &self.observer).await?).clone(),
        };
        let RelayConfig { schema, name, .. } = &self.config;
        let registry =
            Registry::new(connection, schema, name, &self.process.holder, self.config.lease);
        Ok((registry, reading, broker))
    }

    fn presence(&self) -> Presence {
        self.process.presence(self.observer.reaches_broker())
    }

    fn session_error(&self, error: SessionError) -> RelayError {
        RelayError::session(&self.config.database_url, error)
    }

    async fn check(&self, connection: &mut PgConnection) -> Result<(), RelayError> {
        let (schema, url) =
            (self.config.schema.clone(), without_secrets(&self.config.database_url));
        let sql = format!(
            "select pg_is_in_recovery(), to_regclass('{schema}.outbox') is not null \
             and to_regclass('{schema}.relay') is not null"
        );
        let query = sqlx::query(AssertSqlSafe(sql));
        let row = limited(ANSWER, query.fetch_one(&mut *connection)).await?;
        let (in_recovery, migrated): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
        if in_recovery {
            return Err(RelayError::Standby { url });
        }
        if !migrated {
            return Err(RelayError::NotMigrated { schema, url });
        }
        let hidden = HiddenRows::find(connection, &schema, &Self::TABLES, None);
        limited(ANSWER, hidden).await?.map_or(Ok(()), |hidden| Err(hidden.into()))
    }

    /// Ships while the lease holds, and releases it at the end, however shipping ended: another process may be able to
    /// do what this one cannot.
    async fn lead(
        &self,
        lease: Arc<Lease>,
        cursor: Cursor,
        broker: Broker,
        reading: PgConnection,
        shutdown: &CancellationToken,
    ) -> Result<Ended, RelayError> {
        let led = self.ship_under(&lease, cursor, broker, reading, shutdown).await;
        let released = lease.release(shutdown.is_cancelled());
        match led {
            Ok(()) => released.await?,
            Err(error) => {
                // If this fails, the lease expires by itself.
                let _ = timeout(ANSWER, released).await;
                return Err(error);
            }
        }
        if !self.observer.in_trouble() {
            tracing::info!(relay = self.config.name, "stopped");
        }
        Ok(if shutdown.is_cancelled() { Ended::Stopped } else { Ended::HandedOver })
    }

    /// Runs everything that needs the lease, and ends all of it before it returns.
    async fn ship_under(
        &self,
        lease: &Arc<Lease>,
        cursor: Cursor,
        broker: Broker,
        reading: PgConnection,
        shutdown: &CancellationToken,
    ) -> Result<(), RelayError> {
        let _leading = self.process.lead();
        let stop = shutdown.child_token();
        // During trouble this is not logged again and again.
        if !self.observer.in_trouble() {
            tracing::info!(
                relay = self.config.name,
                epoch = lease.epoch(),
                holder = self.process.holder,
                "leading"
            );
        }
        let (progress, mut reached) = watch::channel(cursor);
        let released = Arc::new(Notify::new());
        let shipper = Shipper {
            config: self.config.clone(),
            database: self.database.clone(),
            reading: Some(reading),
            patience: self.patience.clone(),
            broker,
            progress,
            lease: lease.clone(),
            shutdown: stop.clone(),
            observer: self.observer.clone(),
            released: released.clone(),
        };
        let mut shipping = JoinSet::new();
        shipping.spawn(shipper.run());
        let mut cleaning = JoinSet::new();
        cleaning.spawn(remove_old_rows(
            self.config.clone(),
            self.database.clone(),
            self.observer.clone(),
        ));
        let mut releasing = JoinSet::new();
        releasing.spawn(release_due(
            self.config.clone(),
            self.database.clone(),
            lease.epoch(),
            self.observer.clone(),
            released,
            stop.clone(),
        ));
        let ended = self.keep(lease, &mut reached, &mut shipping, &stop, shutdown).await;
        // Nothing may write under the lease after it is released.
        shipping.shutdown().await;
        cleaning.shutdown().await;
        releasing.shutdown().await;
        match ended {
            Ok(()) => Ok(lease.save(&mut reached).await?),
            Err(error) => {
                // What was done before a table refused something is done. Otherwise the next session does it again,
                // takes that for progress, and says that the trouble is over.
                if matches!(error, RelayError::Tables(_)) {
                    let _ = timeout(ANSWER, lease.save(&mut reached)).await;
                }
                Err(error)
            }
        }
    }

    /// Renews the lease and saves the cursor as it advances, until shipping ends or must end.
    async fn keep(
        &self,
        lease: &Lease,
        reached: &mut watch::Receiver<Cursor>,
        shipping: &mut JoinSet<Result<(), LeaseError>>,
        stop: &CancellationToken,
        shutdown: &CancellationToken,
    ) -> Result<(), RelayError> {
        let third = lease.length() / 3;
        let mut renew_at = Instant::now() + third;
        let mut save_at = Instant::now();
        let mut unsaved = false;
        let mut cut_off = CutOff::default();
        let mut stop_at: Option<Instant> = None;
        loop {
            let far = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                biased;
                () = sleep_until(lease.valid_until()) => return Err(LeaseError::Expired.into()),
                () = sleep_until(renew_at) => {
                    lease.renew().await?;
                    renew_at = Instant::now() + third;
                    let least = lease.attend(self.presence()).await?;
                    let reaches = self.observer.reaches_broker();
                    let is_cut_off = cut_off.look(reaches, lease.length(), Instant::now());
                    if stop.is_cancelled() {
                        // It is stopping already.
                    } else if is_cut_off && least.is_some() {
                        tracing::warn!(
                            relay = self.config.name,
                            "handing over to a process that reaches the broker"
                        );
                        stop.cancel();
                    } else if self.process.hands_over(least, lease.length() / 2) {
                        tracing::info!(relay = self.config.name, "handing over to a less busy process");
                        stop.cancel();
                    }
                }
                Ok(()) = reached.changed(), if !unsaved => unsaved = true,
                () = sleep_until(save_at), if unsaved => {
                    lease.save(reached).await?;
                    unsaved = false;
                    save_at = Instant::now() + SAVE_INTERVAL;
                }
                ended = shipping.join_next() => {
                    return match ended {
                        Some(Ok(shipped)) => Ok(shipped?),
                        _ => Err(RelayError::Database(sqlx::Error::WorkerCrashed)),
                    };
                }
                () = stop.cancelled(), if stop_at.is_none() => {
                    tracing::info!(relay = self.config.name, "stopping");
                    if shutdown.is_cancelled() {
                        self.observer.stopping();
                    }
                    stop_at = Some(Instant::now() + self.config.shutdown_timeout);
                }
                () = sleep_until(stop_at.unwrap_or(far)), if stop_at.is_some() => {
                    tracing::warn!(relay = self.config.name, "stopped before everything was acknowledged; it will be shipped again");
                    return Ok(());
                }
            }
        }
    }
}

/// Waits for `work`. Returns `None` if the relay is told to stop first.
async fn unless_stopped<T>(
    shutdown: &CancellationToken,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        done = work => Some(done),
    }
}
