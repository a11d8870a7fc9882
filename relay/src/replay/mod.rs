//! Sends shipped events again, on an operator's request: to a stream that was lost, or for consumers that start from
//! the beginning.
//!
//! The events are read from the outbox, so only events within its retention can be sent. They are sent in the order of
//! their positions under their own ids, with `Nats-Msg-Id = <event id>#<generation>`. Under the event id alone, the
//! broker would drop them within its duplicate window. The relay is not disturbed, and its cursor does not move; events
//! that it ships meanwhile come between the repeated ones. A consumer with an inbox skips events that it has handled.
//! To handle an event again, use another consumer name.

use std::num::NonZeroU32;
use std::time::Duration;

use pillarbox_store::actions::{Deed, record};
use pillarbox_store::full_text;
use pillarbox_store::limit::limited;
use pillarbox_store::{Operator, Schema};
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{PgConnection, Row as _, SqlStr};
use tokio::time::Instant;

use crate::acknowledged::Acknowledged;
use crate::broker::Connection;
use crate::config::RelayConfig;
use crate::message::{Form, Message};
use crate::refused::Refused;
use crate::rows::{Compression, PAGE_BYTES, Reading, Room, Select, Table, is_of_data, read_entry};
use crate::sink::{KeyedWindow, Sink, SinkFailure};
use crate::source::visibility::spliced;
use pillarbox_store::schema::in_schema;

const PAGE_ROWS: i64 = 500;
/// The default time limit for one answer of the database.
const ANSWER: Duration = Duration::from_secs(30);
/// The largest row that is read with its page, in bytes.
const EACH: i64 = 2 * PAGE_BYTES as i64 / PAGE_ROWS;

/// Which events to replay. A field that is `None` matches all.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// Only events that were written since then: a time as Postgres reads it, or an age such as `90s`, `15m`, `2h` or
    /// `1d`.
    pub since: Option<String>,
    /// Only events at this position or later.
    pub from_position: Option<i64>,
    /// The topic, in full.
    pub topic: Option<String>,
    /// The ordering key.
    pub key: Option<String>,
}

/// Why a replay did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The relay has never run, so it has shipped nothing.
    #[error("relay {relay:?} has never run: nothing has been shipped that could be replayed")]
    NeverRun {
        /// The relay's name.
        relay: String,
    },
    /// The database failed.
    #[error("{}: the database failed", stopped(*after))]
    Database {
        /// All chosen events up to this position have been sent.
        after: i64,
        /// The error of sqlx.
        #[source]
        source: sqlx::Error,
    },
    /// The broker did not take an event.
    #[error("{}: the broker did not take an event", stopped(*after))]
    Broker {
        /// All chosen events up to this position have been sent.
        after: i64,
        /// The broker's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ReplayError {
    /// After which position to continue. `None`: nothing was sent.
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
    /// How many events it would send.
    pub events: i64,
    /// The first and the last position. `None`: there are no such events.
    pub positions: Option<(i64, i64)>,
}

/// The progress of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How many events were sent.
    pub sent: u64,
    /// How many rows were skipped because they are no valid events.
    pub skipped: u64,
    /// All chosen events up to this position have been sent.
    pub after: i64,
}

/// A replay of what a relay had shipped when the replay was opened.
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
struct ReplayPage {
    messages: Vec<Message>,
    /// The position of the page's last row.
    last: i64,
    /// How many rows cannot be sent.
    skipped: u64,
}

impl Replay {
    /// Finds out what the relay with these settings has shipped, over a connection to the outbox's database. This and
    /// every later answer may take 30 seconds, unless [`limit`](Self::limit) says otherwise.
    ///
    /// # Errors
    /// [`ReplayError::NeverRun`]. [`ReplayError::Database`], also if `since` is not a time.
    pub async fn open(
        mut connection: PgConnection,
        config: &RelayConfig,
        which: Which,
    ) -> Result<Self, ReplayError> {
        let failed = |source| ReplayError::Database { after: 0, source };
        let (schema, relay) = (&config.schema, &config.name);
        let sql = |text: &str| in_schema(&spliced(text), schema);
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

    /// Sends at most this many events per second, so that consumers keep up with these and with new events. Default: as
    /// fast as the broker accepts them.
    #[must_use]
    pub fn at_most(self, per_second: NonZeroU32) -> Self {
        Self { rate: Some(per_second), ..self }
    }

    /// The time limit for each answer of the database. Default: 30 seconds.
    #[must_use]
    pub fn limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Records that an operator is about to send this many events in this generation. It fails if the role may not
    /// record actions; then nothing should be sent.
    ///
    /// # Errors
    /// [`ReplayError::Database`].
    pub async fn record(
        &mut self,
        operator: &Operator,
        generation: &str,
        events: i64,
    ) -> Result<(), ReplayError> {
        let failed = |source| ReplayError::Database { after: 0, source };
        let schema = Schema::parse(&self.schema)
            .map_err(|error| failed(sqlx::Error::Configuration(Box::new(error))))?;
        let target = format!("{}, generation {generation}", self.relay);
        let deed = Deed { what: "replay", target: &target, count: events, letters: &[] };
        let recorded = record(&mut self.connection, &schema, operator, &deed);
        limited(self.limit, recorded).await.map_err(failed)
    }

    /// Counts the events that the replay would send.
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

    /// Sends the events and reports the progress after each page. Each event is acknowledged before the next event of
    /// its key is sent. Within its duplicate window, the broker drops what another run with the same generation has
    /// sent.
    ///
    /// Dropping the future stops the replay. Everything up to the last progress has been sent, and possibly some more.
    ///
    /// # Errors
    /// [`ReplayError`], with the position after which to continue.
    pub async fn run(
        mut self,
        broker: &Connection,
        generation: &str,
        mut progress: impl FnMut(Progress),
    ) -> Result<Progress, ReplayError> {
        let mut done = Progress { sent: 0, skipped: 0, after: self.first };
        let begun = Instant::now();
        // At least ten pages a second, so that a low rate does not become a series of bursts.
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
            let Some(ReplayPage { messages, last, skipped }) = page else {
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

    /// The next page, with the messages that can be sent. `None`: there are no more pages.
    async fn read(
        &mut self,
        reading: &Reading,
        after: i64,
        page_rows: i64,
        generation: &str,
    ) -> Result<Option<ReplayPage>, sqlx::Error> {
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
        let mut sendable = ReplayPage { messages: Vec::new(), last, skipped: 0 };
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
