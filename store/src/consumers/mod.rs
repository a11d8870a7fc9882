//! What operators do with the consumers of an inbox: see how they are, pause and resume them, limit their rate, and
//! remove those that are gone.
//!
//! A consumer's processes write about once a second how they are (`inbox_member`), and read at the same time what is
//! paused (`inbox_pause`) and limited (`inbox_rate`). So a change takes effect within about a second, in all processes,
//! and also in those that start later. No process needs to be reached.
//!
//! ```no_run
//! # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! use pillarbox_store::consumers::Consumers;
//! use pillarbox_store::Operator;
//!
//! let consumers = Consumers::new(pool, "pillarbox")?;
//! let operator = Operator::new("mia", Some("the provider is down until noon"));
//! consumers.pause("payments", None, &operator).await?;
//! # Ok(()) }
//! ```

mod remove;

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Row};

use crate::actions::{Deed, Operator, record};
use crate::schema::{Schema, SchemaError};

/// A process that was not seen for this long does not count as running. It writes about once a second, but only if its
/// pool has a connection for that.
pub const SILENT_AFTER_S: i64 = 30;

/// The highest rate that a consumer can be limited to, in events per second.
pub const HIGHEST_RATE: f64 = 1_000_000.0;

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The database knows no consumer of this name.
    #[error("this database knows no consumer {consumer:?}; it knows {}", named(known))]
    Unknown {
        /// The name.
        consumer: String,
        /// The consumers that it knows, at most 20.
        known: Vec<String>,
    },
    /// The rate cannot be used.
    #[error("a rate must be above 0 and at most {HIGHEST_RATE} events per second")]
    Rate,
    /// Processes of the consumer are running.
    #[error(
        "consumer {consumer:?} is not gone: {processes} of its processes were seen within the last {SILENT_AFTER_S} s; \
         stop them first"
    )]
    Running {
        /// The name.
        consumer: String,
        /// How many processes were seen.
        processes: i64,
    },
    /// The consumer has dead letters that nobody has resolved.
    #[error(
        "consumer {consumer:?} has {letters} unresolved dead letters; resolve them first, or remove it with its letters"
    )]
    Unresolved {
        /// The name.
        consumer: String,
        /// How many.
        letters: i64,
    },
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

fn named(known: &[String]) -> String {
    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
}

/// What an operator has paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pause {
    /// The type of events that is paused. `None`: all of the consumer.
    pub event_type: Option<String>,
    /// Who paused it.
    pub by: String,
    /// Why.
    pub note: Option<String>,
    /// Since when: `YYYY-MM-DDTHH:MM:SSZ`.
    pub since: String,
}

/// A limit of the events that a consumer may begin, over all its processes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Rate {
    /// Events per second.
    pub per_second: f64,
    /// Who set it.
    pub by: String,
    /// Why.
    pub note: Option<String>,
    /// Since when: `YYYY-MM-DDTHH:MM:SSZ`.
    pub since: String,
}

/// How a consumer is, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Condition {
    /// At least one process was seen lately, and nothing is paused.
    Running,
    /// An operator has paused it, whether processes run or not.
    Paused,
    /// No process was seen lately.
    Gone,
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Gone => "gone",
        })
    }
}

/// How a consumer is, over all its processes.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Overview {
    /// Its name.
    pub consumer: String,
    /// How it is.
    pub condition: Condition,
    /// The stream that it reads, as far as a process has said.
    pub stream: Option<String>,
    /// How many of its processes were seen within the last [`SILENT_AFTER_S`] seconds.
    pub processes: i64,
    /// How long ago the last one was seen, in seconds.
    pub seen_age_seconds: Option<f64>,
    /// Why it handles nothing, if all processes that were seen lately say so: the broker is away, its stream is missing,
    /// its database fails. `None` if one of them works, or if an operator has paused it.
    pub waits_for: Option<String>,
    /// Events of the stream that are not handled, by the newest measurement.
    pub lag_events: Option<i64>,
    /// The age of the oldest of them now, in seconds.
    pub oldest_age_seconds: Option<f64>,
    /// How old the measurement is, in seconds.
    pub measured_age_seconds: Option<f64>,
    /// Events that failed and are tried again.
    pub failing_events: i64,
    /// For how many seconds the oldest of them has been failing.
    pub oldest_failure_seconds: Option<f64>,
    /// Events that are parked.
    pub parked_events: i64,
    /// Dead letters.
    pub dead_letters: i64,
    /// What is paused.
    pub pauses: Vec<Pause>,
    /// The limit, if there is one.
    pub rate: Option<Rate>,
}

/// A process of a consumer.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Process {
    /// Its name, which is made anew at each start.
    pub process: String,
    /// The stream that it reads.
    pub stream: String,
    /// The host's name, and the process's number there.
    pub host: String,
    /// What it is doing: a state of the consumer's status, such as `active`.
    pub state: String,
    /// Why, if it handles nothing.
    pub reason: Option<String>,
    /// How long ago it was started, in seconds.
    pub started_age_seconds: f64,
    /// How long ago it was seen, in seconds.
    pub seen_age_seconds: f64,
}

/// The consumers of one inbox.
#[derive(Clone, Debug)]
pub struct Consumers {
    pool: PgPool,
    schema: Schema,
}

impl Consumers {
    /// The consumers in this schema. Connects to nothing yet.
    ///
    /// # Errors
    /// [`SchemaError`] if the schema's name cannot be used.
    pub fn new(pool: PgPool, schema: &str) -> Result<Self, SchemaError> {
        Ok(Self { pool, schema: Schema::parse(schema)? })
    }

    /// How all consumers are, by name. It looks at each consumer once, and at each failing event and unresolved letter.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn list(&self) -> Result<Vec<Overview>, sqlx::Error> {
        self.read(None).await
    }

    /// How one consumer is. `None`: the database does not know it.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn find(&self, consumer: &str) -> Result<Option<Overview>, sqlx::Error> {
        Ok(self.read(Some(consumer)).await?.pop())
    }

    /// How many processes of a consumer were seen within the last [`SILENT_AFTER_S`] seconds.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn running(&self, consumer: &str) -> Result<i64, sqlx::Error> {
        running(&mut *self.pool.acquire().await?, &self.schema, consumer).await
    }

    /// The processes of a consumer, the newest first, at most 200. Also those that are gone, for up to an hour.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn processes(&self, consumer: &str) -> Result<Vec<Process>, sqlx::Error> {
        let rows = sqlx::query(self.schema.statement(include_str!("processes.sql")))
            .bind(consumer)
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Process {
                    process: row.try_get("process")?,
                    stream: row.try_get("stream")?,
                    host: row.try_get("host")?,
                    state: row.try_get("state")?,
                    reason: row.try_get("reason")?,
                    started_age_seconds: row.try_get("started_age")?,
                    seen_age_seconds: row.try_get("seen_age")?,
                })
            })
            .collect()
    }

    async fn read(&self, consumer: Option<&str>) -> Result<Vec<Overview>, sqlx::Error> {
        let list = sqlx::query(self.schema.statement(include_str!("list.sql")));
        let rows = list.bind(consumer).bind(SILENT_AFTER_S).fetch_all(&self.pool).await?;
        let mut found: Vec<Overview> = rows.iter().map(overview).collect::<Result<_, _>>()?;
        let pauses = sqlx::query(self.schema.statement(
            "select consumer, nullif(event_type, '') as event_type, paused_by, note, \
             to_char(paused_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as paused_at \
             from pillarbox.inbox_pause order by consumer, event_type",
        ));
        for row in pauses.fetch_all(&self.pool).await? {
            let of: String = row.try_get("consumer")?;
            let Some(overview) = found.iter_mut().find(|one| one.consumer == of) else { continue };
            let pause = Pause {
                event_type: row.try_get("event_type")?,
                by: row.try_get("paused_by")?,
                note: row.try_get("note")?,
                since: row.try_get("paused_at")?,
            };
            if pause.event_type.is_none() {
                overview.condition = Condition::Paused;
            }
            overview.pauses.push(pause);
        }
        Ok(found)
    }

    /// Pauses a consumer, or its events of one type. Its processes begin no such event any more within about a second;
    /// what they have begun ends. Returns `false` if it was paused before; the pause then keeps its name and its note.
    ///
    /// A paused consumer loses nothing: its events wait in the stream. Events of a paused type are put into the table
    /// of dead letters as parked events, and the later events of their keys follow them there, so the order of each key
    /// stays. At most 10,000 events, or 256 MiB, are put there; then the consumer waits as a whole.
    ///
    /// # Errors
    /// [`ControlError::Unknown`] and [`ControlError::Database`].
    pub async fn pause(
        &self,
        consumer: &str,
        event_type: Option<&str>,
        operator: &Operator,
    ) -> Result<bool, ControlError> {
        self.known(consumer).await?;
        let pause = sqlx::query(self.schema.statement(
            "insert into pillarbox.inbox_pause (consumer, event_type, paused_by, note) values ($1, $2, $3, $4) \
             on conflict do nothing",
        ));
        let pause = pause
            .bind(consumer)
            .bind(event_type.unwrap_or_default())
            .bind(operator.who())
            .bind(operator.note());
        let mut tx = self.pool.begin().await?;
        let done = pause.execute(&mut *tx).await?.rows_affected() == 1;
        if done {
            self.record(&mut tx, "consumers.pause", &target(consumer, event_type), operator)
                .await?;
        }
        tx.commit().await?;
        Ok(done)
    }

    /// Ends a pause. Returns `false` if there was none.
    ///
    /// # Errors
    /// [`ControlError::Unknown`] and [`ControlError::Database`].
    pub async fn resume(
        &self,
        consumer: &str,
        event_type: Option<&str>,
        operator: &Operator,
    ) -> Result<bool, ControlError> {
        self.known(consumer).await?;
        let mut tx = self.pool.begin().await?;
        let resume = sqlx::query(self.schema.statement(
            "delete from pillarbox.inbox_pause where consumer = $1 and event_type = $2",
        ));
        let resume = resume.bind(consumer).bind(event_type.unwrap_or_default());
        let done = resume.execute(&mut *tx).await?.rows_affected() == 1;
        if done {
            self.record(&mut tx, "consumers.resume", &target(consumer, event_type), operator)
                .await?;
        }
        tx.commit().await?;
        Ok(done)
    }

    /// Limits how many events per second a consumer begins, over all its processes. `None`: no limit. Returns `false`
    /// if there was no limit to remove.
    ///
    /// # Errors
    /// [`ControlError::Unknown`], [`ControlError::Rate`] and [`ControlError::Database`].
    pub async fn limit(
        &self,
        consumer: &str,
        per_second: Option<f64>,
        operator: &Operator,
    ) -> Result<bool, ControlError> {
        if per_second.is_some_and(|rate| !(rate > 0.0 && rate <= HIGHEST_RATE)) {
            return Err(ControlError::Rate);
        }
        self.known(consumer).await?;
        let mut tx = self.pool.begin().await?;
        let done = match per_second {
            Some(rate) => {
                let set = sqlx::query(self.schema.statement(
                    "insert into pillarbox.inbox_rate as rate (consumer, per_second, set_by, note) \
                     values ($1, $2, $3, $4) on conflict (consumer) do update set per_second = excluded.per_second, \
                     set_by = excluded.set_by, note = excluded.note, set_at = excluded.set_at, next_at = excluded.next_at",
                ));
                let set = set.bind(consumer).bind(rate).bind(operator.who()).bind(operator.note());
                set.execute(&mut *tx).await?
            }
            None => {
                let remove =
                    self.schema.statement("delete from pillarbox.inbox_rate where consumer = $1");
                sqlx::query(remove).bind(consumer).execute(&mut *tx).await?
            }
        };
        let done = done.rows_affected() == 1;
        if done {
            let target = match per_second {
                Some(rate) => format!("{consumer}: {rate} events per second"),
                None => format!("{consumer}: no limit"),
            };
            self.record(&mut tx, "consumers.limit", &target, operator).await?;
        }
        tx.commit().await?;
        Ok(done)
    }

    async fn record(
        &self,
        connection: &mut PgConnection,
        what: &'static str,
        target: &str,
        operator: &Operator,
    ) -> Result<(), sqlx::Error> {
        let deed = Deed { what, target, count: 1, letters: &[] };
        record(connection, &self.schema, operator, &deed).await
    }

    /// Fails unless the database knows the consumer.
    async fn known(&self, consumer: &str) -> Result<(), ControlError> {
        if self.find(consumer).await?.is_some() {
            return Ok(());
        }
        let known = self.list().await?.into_iter().map(|one| one.consumer).take(20).collect();
        Err(ControlError::Unknown { consumer: consumer.to_owned(), known })
    }
}

async fn running(
    connection: &mut PgConnection,
    schema: &Schema,
    consumer: &str,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(schema.statement(
        "select count(*) from pillarbox.inbox_member where consumer = $1 \
         and seen_at > clock_timestamp() - $2::float8 * interval '1 second'",
    ))
    .bind(consumer)
    .bind(SILENT_AFTER_S)
    .fetch_one(connection)
    .await
}

fn target(consumer: &str, event_type: Option<&str>) -> String {
    match event_type {
        Some(event_type) => format!("{consumer}, type {event_type}"),
        None => consumer.to_owned(),
    }
}

fn overview(row: &PgRow) -> Result<Overview, sqlx::Error> {
    let processes: i64 = row.try_get("processes")?;
    let (pending, ack_pending): (Option<i64>, Option<i64>) =
        (row.try_get("pending")?, row.try_get("ack_pending")?);
    let lag_events = pending.map(|pending| pending.saturating_add(ack_pending.unwrap_or(0)));
    let oldest_age: Option<f64> = row.try_get("oldest_age")?;
    let rate = match row.try_get::<Option<f64>, _>("per_second")? {
        Some(per_second) => Some(Rate {
            per_second,
            by: row.try_get::<Option<_>, _>("set_by")?.unwrap_or_default(),
            note: row.try_get("rate_note")?,
            since: row.try_get::<Option<_>, _>("set_at")?.unwrap_or_default(),
        }),
        None => None,
    };
    Ok(Overview {
        consumer: row.try_get("consumer")?,
        condition: if processes > 0 { Condition::Running } else { Condition::Gone },
        stream: row.try_get("stream")?,
        processes,
        seen_age_seconds: row.try_get("seen_age")?,
        waits_for: row.try_get("waits_for")?,
        lag_events,
        // It was 0 because nothing was unhandled, and does not grow.
        oldest_age_seconds: oldest_age.map(|age| if lag_events == Some(0) { 0.0 } else { age }),
        measured_age_seconds: row.try_get("measured_age")?,
        failing_events: row.try_get("failing")?,
        oldest_failure_seconds: row.try_get("failing_age")?,
        parked_events: row.try_get("parked")?,
        dead_letters: row.try_get("dead")?,
        pauses: Vec::new(),
        rate,
    })
}
