//! Decides which partitions this process reads: its share, agreed upon with the other processes through the database.
//!
//! About once a second, each process writes a row that says that it lives and which partitions it has, reads the rows
//! of the others, and takes free partitions up to its share (`claim_partitions.sql`). There is no coordinator and no
//! plan:
//!
//! - A process that joins makes the shares of the others smaller, and they give up what is beyond theirs.
//! - A process that stops gives up all of its partitions.
//! - A process that has died, or does not reach the database, is no longer counted after `takeover`, and its
//!   partitions are free. It stops reading before that, by its own clock.
//! - A process that does not reach the broker for that long gives up all, and takes its share again when it reaches the
//!   broker.
//!
//! ```text
//!                  admitted            prepared
//!   announced ────────────► preparing ─────────► sharing ◄───────────────┐
//!       ▲ │                                       │   no broker, or no   │
//!       └─┘ others run with another number        └─► database for long ─┘ back
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::connection::State;
use pillarbox_inbox::source::Store;
use pillarbox_store::full_text;
use pillarbox_store::limit::milliseconds;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::ConsumerConfig;

/// Says that a process lives, and takes its share of the partitions.
const CLAIM: &str = include_str!("claim_partitions.sql");

/// Gives up all that a process has.
const LEAVE: &str = "delete from pillarbox.inbox_process \
     where consumer operator(pg_catalog.=) $1 and process operator(pg_catalog.=) $2";

/// The longest time between two beats.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long leaving may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// This process among the processes of its consumer.
pub(crate) struct Membership {
    client: async_nats::Client,
    store: Store,
    consumer: String,
    /// A name for this run. Names sort by the time of the start.
    process: String,
    partitions: i32,
    takeover: Duration,
    /// A connection of its own, because handlers may use up those of the pool.
    connection: Option<PgConnection>,
    beating: JoinSet<(Option<PgConnection>, Result<Beat, sqlx::Error>)>,
    beat_at: Instant,
    /// When the last beat that succeeded began.
    seen_at: Instant,
    connected_at: Instant,
    phase: Phase,
    held: BTreeSet<u32>,
    /// Given up while a beat was on its way that still lists them.
    given_up: BTreeSet<u32>,
    failing: bool,
}

/// See the drawing of the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Announced,
    Preparing,
    Sharing,
}

/// What a beat found.
struct Beat {
    began: Instant,
    stranger: Option<i32>,
    size: usize,
    held: BTreeSet<u32>,
    reaches_broker: bool,
}

/// What follows.
pub(crate) enum MembershipChange {
    /// Other processes run with another number of partitions.
    Others(u32),
    /// This process has these partitions, and should have this many: none while it does not reach the broker.
    Share { held: BTreeSet<u32>, size: usize, reaches_broker: bool },
    /// The database does not answer, and why.
    Failing(String),
    /// The database has not answered for so long that this process has no partitions any longer.
    Lost,
}

impl Membership {
    pub(crate) fn new(
        client: async_nats::Client,
        store: Store,
        config: &ConsumerConfig,
        partitions: u32,
    ) -> Self {
        let now = Instant::now();
        Self {
            client,
            store,
            consumer: config.name.clone(),
            process: pillarbox_event::EventId::generate().as_str().to_owned(),
            partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
            takeover: config.takeover,
            connection: None,
            beating: JoinSet::new(),
            beat_at: now,
            seen_at: now,
            connected_at: now,
            phase: Phase::Announced,
            held: BTreeSet::new(),
            given_up: BTreeSet::new(),
            failing: false,
        }
    }

    /// No process runs with another number of partitions. Returns whether that is news. If so, the durables must be
    /// prepared.
    pub(crate) fn admitted(&mut self) -> bool {
        let news = self.phase == Phase::Announced;
        if news {
            self.phase = Phase::Preparing;
        }
        news
    }

    /// The durables exist, and may be read.
    pub(crate) fn prepared(&mut self) {
        self.phase = Phase::Sharing;
        self.beat_at = Instant::now();
    }

    /// Nothing of this partition is in progress any longer, so another process may have it.
    pub(crate) fn give_up(&mut self, partition: u32) {
        self.held.remove(&partition);
        self.given_up.insert(partition);
        self.beat_at = Instant::now();
    }

    /// The next change. Safe to cancel.
    pub(crate) async fn changed(&mut self) -> MembershipChange {
        loop {
            // By this process's own clock, before the others stop counting it.
            let expires_at = match self.held.is_empty() {
                true => Instant::now() + Duration::from_secs(3600),
                false => self.seen_at + self.takeover,
            };
            tokio::select! {
                Some(beat) = self.beating.join_next() => {
                    let Ok((connection, result)) = beat else { continue };
                    self.connection = connection;
                    match result {
                        Ok(beat) => return self.beaten(beat),
                        Err(error) => {
                            if !std::mem::replace(&mut self.failing, true) {
                                return MembershipChange::Failing(full_text(&error));
                            }
                        }
                    }
                }
                () = sleep_until(self.beat_at), if self.beating.is_empty() => self.beat(),
                () = sleep_until(expires_at) => {
                    tracing::warn!(
                        consumer = self.consumer,
                        "this process gives up its partitions, because it cannot tell the database that it is alive"
                    );
                    self.held.clear();
                    return MembershipChange::Lost;
                }
            }
        }
    }

    fn beat(&mut self) {
        let now = Instant::now();
        self.beat_at = now + INTERVAL.min(self.takeover / 4);
        if self.client.connection_state() == State::Connected {
            self.connected_at = now;
        }
        self.given_up.clear();
        let reaches_broker = now - self.connected_at < self.takeover;
        let sharing = self.phase == Phase::Sharing && reaches_broker;
        let held = if sharing { self.held.iter().copied().collect() } else { Vec::new() };
        let announcement = Announcement {
            consumer: self.consumer.clone(),
            process: self.process.clone(),
            partitions: self.partitions,
            takeover: self.takeover,
            held,
            sharing,
            reaches_broker,
        };
        let (store, connection) = (self.store.clone(), self.connection.take());
        self.beating.spawn(async move {
            let mut connection = connection;
            let made =
                timeout(announcement.takeover / 2, announcement.make(&store, &mut connection))
                    .await;
            match made {
                Ok(Ok(beat)) => (connection, Ok(beat)),
                Ok(Err(error)) => (None, Err(error)),
                Err(_) => (None, Err(sqlx::Error::PoolTimedOut)),
            }
        });
    }

    fn beaten(&mut self, beat: Beat) -> MembershipChange {
        self.failing = false;
        self.seen_at = beat.began;
        if let Some(stranger) = beat.stranger {
            self.held.clear();
            self.phase = Phase::Announced;
            return MembershipChange::Others(stranger.unsigned_abs());
        }
        self.held = &beat.held - &self.given_up;
        MembershipChange::Share {
            held: self.held.clone(),
            size: beat.size,
            reaches_broker: beat.reaches_broker,
        }
    }

    /// Tells the others that this process is gone.
    pub(crate) async fn leave(mut self) {
        self.beating.shutdown().await;
        let leave = async {
            let leave = self.store.statement(LEAVE);
            let leave = self.store.query(&leave).bind(&self.process);
            self.store.lend().await?.execute(leave).await
        };
        if !matches!(timeout(LEAVE_TIMEOUT, leave).await, Ok(Ok(_))) {
            tracing::debug!(
                consumer = self.consumer,
                "this process could not give up its partitions; they are free once its entry has expired"
            );
        }
    }
}

/// What a process says of itself.
struct Announcement {
    consumer: String,
    process: String,
    partitions: i32,
    takeover: Duration,
    held: Vec<u32>,
    sharing: bool,
    reaches_broker: bool,
}

impl Announcement {
    async fn make(
        self,
        store: &Store,
        connection: &mut Option<PgConnection>,
    ) -> Result<Beat, sqlx::Error> {
        let began = Instant::now();
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(store.pool().await?.acquire().await?.detach()),
        };
        let held: Vec<i32> =
            self.held.iter().filter_map(|held| i32::try_from(*held).ok()).collect();
        // A process that was paused in the middle loses the lock before the others stop counting one another.
        let begin = format!(
            "begin; set local idle_in_transaction_session_timeout = {}",
            (self.takeover / 4).as_millis()
        );
        let mut tx = connection.begin_with(AssertSqlSafe(begin)).await?;
        sqlx::query(
            "select pg_catalog.pg_advisory_xact_lock(\
             pg_catalog.hashtextextended('pillarbox.inbox_process ' operator(pg_catalog.||) $1, 0))",
        )
        .bind(&self.consumer)
        .execute(&mut *tx)
        .await?;
        let row = store
            .query(&store.statement(CLAIM))
            .bind(&self.process)
            .bind(self.partitions)
            .bind(milliseconds(self.takeover))
            .bind(held)
            .bind(self.sharing)
            .fetch_one(&mut *tx)
            .await?;
        tx.commit().await?;
        let (size, held): (i32, Vec<i32>) = (row.try_get(1)?, row.try_get(2)?);
        Ok(Beat {
            began,
            stranger: row.try_get(0)?,
            size: usize::try_from(size).unwrap_or(0),
            held: held.into_iter().map(i32::unsigned_abs).collect(),
            reaches_broker: self.reaches_broker,
        })
    }
}
