//! A writer. It commits events, and records what it did and what it was told.

use std::collections::VecDeque;
use std::time::Duration;

use pillarbox_event::EventId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::event::{Drawn, Kind, cancel, draw, draw_later};
use crate::journal::Journal;
use crate::trips::events::Requested;

/// The settings of a writer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WriterRole {
    /// Where the outbox is.
    pub database_url: String,
    /// The seed of its choices.
    pub seed: u64,
    /// How many connections write at the same time.
    pub sessions: u64,
    /// How many keys there are.
    pub keys: u32,
    /// The longest pause between two transactions of a session, in milliseconds.
    pub pause_ms: u64,
    /// Whether the database is behind a pooler in transaction mode.
    pub pooled: bool,
    /// Whether it also asks for trips.
    pub saga: bool,
}

/// What a writer records.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriterNote {
    /// A transaction has begun. `tx` is the journal's number for it.
    Begun {
        /// The transaction.
        tx: String,
    },
    /// It has drawn these events.
    Drew {
        /// The transaction.
        tx: String,
        /// The events.
        events: Vec<Drawn>,
    },
    /// The database said that it was committed.
    Committed {
        /// The transaction.
        tx: String,
    },
    /// It was rolled back, or the connection was lost before a commit was asked for.
    RolledBack {
        /// The transaction.
        tx: String,
    },
    /// An error came in place of the answer to the commit.
    Unknown {
        /// The transaction.
        tx: String,
        /// The error.
        error: String,
    },
}

/// The longest pause within a transaction, in milliseconds.
const HOLD_MS: u64 = 15;
/// The longest time ahead for which an event is scheduled, in milliseconds.
const LONGEST_AHEAD_MS: u64 = 1_500;
/// How long the database may take to answer before the writer tries another connection.
const PATIENCE: Duration = Duration::from_secs(5);

impl WriterRole {
    pub(super) async fn play(
        self,
        journal: Journal,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let journal = std::sync::Arc::new(journal);
        let mut sessions = JoinSet::new();
        for number in 0..self.sessions {
            let session = Session {
                random: StdRng::seed_from_u64(self.seed.wrapping_mul(31).wrapping_add(number)),
                role: self.clone(),
                journal: journal.clone(),
                number,
                transactions: 0,
                scheduled: VecDeque::new(),
            };
            sessions.spawn(session.run(stop.clone()));
        }
        while let Some(ended) = sessions.join_next().await {
            ended??;
        }
        Ok(())
    }
}

struct Session {
    role: WriterRole,
    random: StdRng,
    journal: std::sync::Arc<Journal>,
    number: u64,
    transactions: u64,
    /// Events that it has scheduled, and may cancel.
    scheduled: VecDeque<EventId>,
}

impl Session {
    async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            let mut database: PgConnectOptions = self.role.database_url.parse()?;
            if self.role.pooled {
                database = database.statement_cache_capacity(0);
            }
            let connected = PgConnection::connect_with(&database);
            if let Ok(Ok(mut connection)) = tokio::time::timeout(PATIENCE, connected).await {
                while !stop.is_cancelled() {
                    self.transactions += 1;
                    let tx = format!("{}.{}", self.number, self.transactions);
                    if !self.transact(&tx, &mut connection).await? {
                        break;
                    }
                    self.pause(self.role.pause_ms).await;
                }
            }
            // Whatever broke the connection, it will come back.
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Runs one transaction. Returns `false` if the connection can no longer be used. An error comes from the journal.
    async fn transact(
        &mut self,
        name: &str,
        connection: &mut PgConnection,
    ) -> anyhow::Result<bool> {
        let tx = name.to_owned();
        self.journal.note(WriterNote::Begun { tx: tx.clone() })?;
        let ended = tokio::time::timeout(PATIENCE, self.write(name, connection)).await;
        Ok(match ended {
            Ok(Ok(End::Committed)) => {
                self.journal.note(WriterNote::Committed { tx })?;
                true
            }
            Ok(Ok(End::RolledBack)) => {
                self.journal.note(WriterNote::RolledBack { tx })?;
                true
            }
            Ok(Ok(End::Unknown(error))) => {
                self.journal.note(WriterNote::Unknown { tx, error })?;
                false
            }
            // The commit was not asked for.
            Ok(Err(_)) => {
                self.journal.note(WriterNote::RolledBack { tx })?;
                false
            }
            // Perhaps this happened during the commit.
            Err(_) => {
                self.journal.note(WriterNote::Unknown { tx, error: "no answer in time".into() })?;
                false
            }
        })
    }

    async fn write(&mut self, name: &str, connection: &mut PgConnection) -> anyhow::Result<End> {
        let mut tx = connection.begin().await?;
        if self.random.random_bool(0.2) {
            // It takes its id early, and so finishes after transactions that took their id later.
            sqlx::query("select pg_current_xact_id()::text").fetch_one(&mut *tx).await?;
            self.pause(HOLD_MS).await;
        }
        let mut keys = vec![self.random.random_range(0..self.role.keys)];
        if self.random.random_bool(0.1) {
            keys.push(self.random.random_range(0..self.role.keys));
            // Always in the same order, so that writers wait for each other and do not deadlock.
            keys.sort_unstable();
            keys.dedup();
        }
        let mut events = Vec::new();
        for key in keys {
            let many = self.random.random_range(1..=3);
            events.extend(draw(&mut tx, Some(&key_name(key)), &vec![Kind::Plain; many]).await?);
        }
        if self.random.random_bool(0.05) {
            events.extend(draw(&mut tx, None, &[Kind::Plain]).await?);
        }
        self.journal.note(WriterNote::Drew { tx: name.to_owned(), events })?;
        let mut scheduled = None;
        if self.random.random_bool(0.2) {
            let ahead = Duration::from_millis(self.random.random_range(0..LONGEST_AHEAD_MS));
            let event = draw_later(&mut tx, ahead).await?;
            scheduled = Some(EventId::parse(event.id)?);
        }
        // Some of them have left by now.
        if self.random.random_bool(0.1)
            && let Some(id) = self.scheduled.pop_front()
        {
            cancel(&mut tx, &id).await?;
        }
        if self.role.saga && self.random.random_bool(0.15) {
            let trip = Requested { trip: Uuid::now_v7().to_string() };
            // Some are asked for twice.
            for _ in 0..=usize::from(self.random.random_bool(0.1)) {
                pillarbox_outbox::publish(&mut tx, &trip).await?;
            }
        }
        if self.random.random_bool(0.2) {
            self.pause(HOLD_MS).await;
        }
        if self.random.random_bool(0.1) {
            tx.rollback().await?;
            return Ok(End::RolledBack);
        }
        Ok(match tx.commit().await {
            Ok(()) => {
                self.scheduled.extend(scheduled);
                while self.scheduled.len() > 5 {
                    self.scheduled.pop_front();
                }
                End::Committed
            }
            Err(error) => End::Unknown(error.to_string()),
        })
    }

    async fn pause(&mut self, longest_ms: u64) {
        let longest = Duration::from_millis(longest_ms);
        sleep(longest.mul_f64(self.random.random_range(0.0..1.0))).await;
    }
}

enum End {
    Committed,
    RolledBack,
    Unknown(String),
}

/// The key with this number.
pub(crate) fn key_name(number: u32) -> String {
    format!("k{number}")
}
