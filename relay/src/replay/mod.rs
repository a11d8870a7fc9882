//! Sending shipped events again, on purpose: to a stream that was lost, or to consumers that start anew.
//!
//! The events are read from the outbox, so only those within its retention can be had. They go out in the order
//! of their positions under their own ids, and under `Nats-Msg-Id = <event id>#<generation>`, or the broker's
//! duplicate window would swallow them. The relay is not disturbed, and its cursor does not move: what it ships
//! meanwhile lies between the repeats. A consumer with an inbox skips what it has handled; to handle an event
//! again takes another consumer name.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use pillarbox_store::full_text;
use pillarbox_store::limit::limited;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Row as _, SqlSafeStr, SqlStr};
use tokio::time::Instant;

use crate::acknowledged::Acknowledged;
use crate::broker::Connection;
use crate::config::RelayConfig;
use crate::message::{Form, Message};
use crate::refused::Refused;
use crate::rows::{Compression, PAGE_BYTES, Reading, Room, Select, Table, is_of_data, read_entry};
use crate::schema::in_schema;
use crate::sink::{KeyedWindow, Sink, SinkFailure};
use crate::source::visibility::spliced;

const PAGE_ROWS: i64 = 500;
/// How long the database may take for one answer, unless said.
const ANSWER: Duration = Duration::from_secs(30);
/// What a row may weigh to come with its page.
const EACH: i64 = 2 * PAGE_BYTES as i64 / PAGE_ROWS;

/// Which events. What is `None` matches all.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// Written since then: a time as Postgres reads it, or `90s`, `15m`, `2h`, `1d` ago.
    pub since: Option<String>,
    /// From this position on.
    pub from_position: Option<i64>,
    /// The topic, in full.
    pub topic: Option<String>,
    /// The ordering key.
    pub key: Option<String>,
}

/// Why a replay did not start, or did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// There is no relay of this name, so nothing has been shipped.
    #[error("relay {relay:?} has never run: nothing has been shipped that could be replayed")]
    NeverRun {
        /// Its name.
        relay: String,
    },
    /// The database failed.
    #[error("{}: the database failed", stopped(*after))]
    Database {
        /// All chosen events up to this position have been sent.
        after: i64,
        /// What sqlx said.
        #[source]
        source: sqlx::Error,
    },
    /// The broker did not take an event.
    #[error("{}: the broker did not take an event", stopped(*after))]
    Broker {
        /// All chosen events up to this position have been sent.
        after: i64,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ReplayError {
    /// Behind which position to go on, if something has been sent.
    pub fn after(&self) -> Option<i64> {
        match self {
            Self::NeverRun { .. } => None,
            Self::Database { after, .. } | Self::Broker { after, .. } => {
                (*after > 0).then_some(*after)
            }
        }
    }
}

fn stopped(after: i64) -> String {
    match after {
        ..=0 => "nothing was sent".to_owned(),
        after => format!("the replay stopped behind position {after}"),
    }
}

/// What a replay would send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many events.
    pub events: i64,
    /// The first and the last position, if there is any.
    pub positions: Option<(i64, i64)>,
}

/// How far a replay has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Events sent.
    pub sent: u64,
    /// Rows that are no events, and were skipped.
    pub skipped: u64,
    /// All chosen events up to this position have been sent.
    pub after: i64,
}

/// A replay of what one relay had shipped when it was opened.
#[derive(Debug)]
pub struct Replay {
    connection: PgConnection,
    schema: String,
    relay: String,
    compression: Compression,
    form: Form,
    count: SqlStr,
    page: SqlStr,
    which: Which,
    snapshot: String,
    since: String,
    first: i64,
    last: i64,
    rate: Option<NonZeroU32>,
    limit: Duration,
}

/// A page of a replay.
struct Sendable {
    messages: Vec<Message>,
    /// The position of its last row.
    last: i64,
    /// Rows that cannot be sent.
    skipped: u64,
}

impl Replay {
    /// Finds out what there is, over a connection to the outbox's database, for the relay with these settings. That may
    /// take 30 seconds, and so may every later answer, unless [`limit`](Self::limit) says otherwise.
    ///
    /// # Errors
    /// [`ReplayError::NeverRun`]; [`ReplayError::Database`], also for a `since` that is no time.
    pub async fn open(
        mut connection: PgConnection,
        config: &RelayConfig,
        which: Which,
    ) -> Result<Self, ReplayError> {
        let failed = |source| ReplayError::Database { after: 0, source };
        let (schema, relay) = (&config.schema, &config.name);
        let sql = |text: &str| {
            AssertSqlSafe(Arc::<str>::from(in_schema(&spliced(text), schema))).into_sql_str()
        };
        let range = sqlx::query(sql(include_str!("range.sql"))).bind(relay).bind(&which.since);
        let row = limited(ANSWER, range.fetch_optional(&mut connection)).await.map_err(failed)?;
        let row = row.ok_or_else(|| ReplayError::NeverRun { relay: relay.clone() })?;
        let compression = limited(ANSWER, Compression::of(&mut connection)).await;
        let compression = compression.map_err(failed)?;
        Ok(Self {
            schema: schema.clone(),
            relay: relay.clone(),
            compression,
            snapshot: row.try_get("snapshot").map_err(failed)?,
            last: row.try_get::<Option<i64>, _>("last").map_err(failed)?.unwrap_or(0),
            since: row.try_get("since").map_err(failed)?,
            first: which.from_position.unwrap_or(0).saturating_sub(1),
            connection,
            form: Form::of(config),
            count: sql(include_str!("count.sql")),
            page: sql(&Select::text(include_str!("page.sql"), Table::Outbox, compression, "$8")),
            which,
            rate: None,
            limit: ANSWER,
        })
    }

    /// Sends at most so many events per second, so that consumers keep up with it beside what is new. Without
    /// this, as fast as the broker takes them.
    #[must_use]
    pub fn at_most(self, per_second: NonZeroU32) -> Self {
        Self { rate: Some(per_second), ..self }
    }

    /// Waits for each answer of the database for this long at the most.
    #[must_use]
    pub fn limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Counts what it would send.
    ///
    /// # Errors
    /// [`ReplayError::Database`].
    pub async fn count(&mut self) -> Result<Extent, ReplayError> {
        let query = self.rows(&self.count, self.first).bind(self.relay.clone());
        let row = limited(self.limit, query.fetch_one(&mut self.connection)).await;
        let read = |row: PgRow| -> Result<Extent, sqlx::Error> {
            let (first, last): (Option<i64>, Option<i64>) = (row.try_get(1)?, row.try_get(2)?);
            Ok(Extent { events: row.try_get(0)?, positions: first.zip(last) })
        };
        row.and_then(read).map_err(|source| ReplayError::Database { after: 0, source })
    }

    /// Sends them, each acknowledged before the next of its key, and tells of the progress after each page. Two
    /// runs with the same generation are one for the broker, within its duplicate window.
    ///
    /// Dropping the future stops it; what `progress` was last told has been sent, and some more may have been.
    ///
    /// # Errors
    /// [`ReplayError`], with the position to go on behind.
    pub async fn run(
        mut self,
        broker: &Connection,
        generation: &str,
        mut progress: impl FnMut(Progress),
    ) -> Result<Progress, ReplayError> {
        let mut done = Progress { sent: 0, skipped: 0, after: self.first };
        let begun = Instant::now();
        // At least ten pages a second, so that a low rate is no series of bursts.
        let page_rows =
            self.rate.map_or(PAGE_ROWS, |rate| (i64::from(rate.get()) / 10).clamp(1, PAGE_ROWS));
        let broker = broker.context();
        let largest = broker.client().max_payload();
        let reading = Reading::new(&self.schema, Table::Outbox, self.compression, largest);
        let mut sink = KeyedWindow::new(broker, Acknowledged::default());
        loop {
            let database = |source| ReplayError::Database { after: done.after, source };
            let limit = self.limit;
            let page = limited(limit, self.read(&reading, done.after, page_rows, generation)).await;
            let page = page.map_err(database)?;
            let Some(Sendable { messages, last, skipped }) = page else {
                return Ok(done);
            };
            let positions: Vec<i64> = messages.iter().map(|message| message.position).collect();
            let before = done.sent;
            let stored = match sink.store(messages).await {
                Ok(_) => sink.flush().await,
                failed => failed,
            };
            match stored {
                Ok(_) => {
                    done.sent += positions.len() as u64;
                    done.skipped += skipped;
                    done.after = last;
                    progress(done);
                    if let Some(rate) = self.rate {
                        let due = Duration::from_secs_f64(done.sent as f64 / f64::from(rate.get()));
                        tokio::time::sleep_until(begun + due).await;
                    }
                }
                Err(SinkFailure { stored, error }) => {
                    let of_page = usize::try_from(stored - before).unwrap_or(0);
                    let after = of_page.checked_sub(1).and_then(|i| positions.get(i).copied());
                    let after = after.unwrap_or(done.after);
                    return Err(ReplayError::Broker { after, source: Box::new(error) });
                }
            }
        }
    }

    /// The next page, and what of it can be sent. `None` behind the last one.
    async fn read(
        &mut self,
        reading: &Reading,
        after: i64,
        page_rows: i64,
        generation: &str,
    ) -> Result<Option<Sendable>, sqlx::Error> {
        let page = |most: i64| {
            self.rows(&self.page, after).bind(page_rows).bind(most).bind(self.relay.clone())
        };
        let (whole, bare) = (page(EACH), page(-1));
        let rows = match whole.fetch_all(&mut self.connection).await {
            Err(error) if is_of_data(&error) => bare.fetch_all(&mut self.connection).await?,
            rows => rows?,
        };
        let entries = rows.iter().map(read_entry).collect::<Result<Vec<_>, _>>()?;
        drop(rows);
        let filled = reading.fill(&mut self.connection, entries, &mut Room::default()).await?;
        let Some(last) = filled.last else { return Ok(None) };
        let mut sendable = Sendable { messages: Vec::new(), last, skipped: 0 };
        for bad in filled.bad {
            let Refused { position, event_id, error, .. } = bad.refused;
            tracing::warn!(%event_id, position, error, "skipped: this row cannot be sent");
            sendable.skipped += 1;
        }
        for (_, row) in filled.rows {
            let (position, event_id) = (row.position, row.event_id);
            match row.into_repeat(&self.form, generation) {
                Ok(message) => sendable.messages.push(message),
                Err(error) => {
                    let error = full_text(&error);
                    tracing::warn!(%event_id, position, error, "skipped: this row is no event");
                    sendable.skipped += 1;
                }
            }
        }
        Ok(Some(sendable))
    }

    fn rows(&self, sql: &SqlStr, after: i64) -> Query<'static, Postgres, PgArguments> {
        sqlx::query(sql.clone())
            .bind(self.snapshot.clone())
            .bind(after)
            .bind(self.last)
            .bind(self.since.clone())
            .bind(self.which.topic.clone())
            .bind(self.which.key.clone())
    }
}
