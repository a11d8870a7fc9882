//! An operator's view of the dead letters of either side: looking at them, trying them again, discarding them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use pillarbox_event::{EventId, RawEvent, header};
use serde::Serialize;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgPool, Row, SqlSafeStr, SqlStr, ValueRef};

use crate::bad_data::is_of_data;
use crate::dead_letters::of_inbox;
use crate::dead_letters::state::State;
use crate::schema::{Schema, SchemaError};

const DISCARD_OUTBOX: &str = "update pillarbox.outbox_dead_letter \
     set state = 'discarded', resolved_at = clock_timestamp() where letter = $1 and state in ('dead', 'parked')";

/// The largest payload that is listed.
const LISTED_PAYLOAD: i64 = 64 * 1024;

/// Which dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The producer's: events that the relay could not ship.
    Outbox,
    /// The consumers': events that a handler gave up.
    Inbox,
}

/// Which of them; what is `None` matches all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The event's id.
    pub event_id: Option<String>,
    /// The reason, in full.
    pub reason: Option<String>,
    /// The topic, in full.
    pub topic: Option<String>,
    /// The ordering key.
    pub key: Option<String>,
    /// The relay, or the consumer.
    pub owner: Option<String>,
    /// Given up at least this long ago, in seconds.
    pub older_than_s: i64,
    /// The state, `dead` or `parked`.
    pub state: Option<State>,
    /// The position: in the outbox, or among the dead letters of the inbox.
    pub position: Option<i64>,
    /// The source that the event itself names.
    pub source: Option<String>,
    /// The number of one letter: an event id may have several, of two relays, or of two lives of the table.
    pub letter: Option<i64>,
}

/// An event that was given up. `Debug` shows neither payload nor header values; `Serialize` shows the headers.
#[derive(Clone, Serialize)]
pub struct DeadLetter {
    /// Its number.
    pub letter: i64,
    /// The position: in the outbox, or among the dead letters of the inbox.
    pub position: Option<i64>,
    /// The relay, or the consumer, that gave it up.
    pub owner: String,
    /// The event's id, which is one within its source only; `STREAM:sequence` of a message that could not be read.
    pub event_id: String,
    /// The event's type, if the message was an event.
    pub event_type: Option<String>,
    /// The topic.
    pub topic: String,
    /// The ordering key.
    pub key: Option<String>,
    /// The headers, by name. Empty if they are no object of strings, or more than 128 KiB.
    pub headers: BTreeMap<String, String>,
    /// The payload. Empty if it is larger than what was asked for: see [`DeadLetters::list`].
    #[serde(skip)]
    pub payload: Bytes,
    /// How large the payload is.
    pub payload_bytes: i64,
    /// Its state.
    pub state: State,
    /// Why, in a word.
    pub reason: String,
    /// The last error, with its sources.
    pub error: String,
    /// How many attempts failed.
    pub attempts: i32,
    /// Whether all of the event is kept. If not, its row was damaged, or too large to be copied.
    pub whole: bool,
    /// How long ago it was given up, in seconds.
    pub age_seconds: f64,
}

impl std::fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetter")
            .field("owner", &self.owner)
            .field("event_id", &self.event_id)
            .field("topic", &self.topic)
            .field("reason", &self.reason)
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

/// Why a dead letter could not be tried again. It is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetryError {
    /// The database failed.
    #[error("dead letter {event_id} was not retried: the database failed")]
    Database {
        /// The event's id.
        event_id: String,
        /// What sqlx said.
        #[source]
        source: sqlx::Error,
    },
    /// Only a part of the event could be kept.
    #[error(
        "dead letter {event_id} cannot be retried, because only a part of the event could be kept ({error}); \
         mend its row in the outbox at position {position}, publish what it says as a new event, and discard this letter"
    )]
    Incomplete {
        /// The event's id.
        event_id: String,
        /// Where its row is in the outbox.
        position: i64,
        /// Why.
        error: String,
    },
    /// It was never an event, so it cannot be sent as one.
    #[error(
        "dead letter {event_id} cannot be retried, because it is no event: {reason}; discard it"
    )]
    NotAnEvent {
        /// The id it goes by.
        event_id: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The dead letters of one side of one database.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    pool: PgPool,
    side: Side,
    list: SqlStr,
    /// The same with texts as bytes.
    list_bytes: SqlStr,
    count: SqlStr,
    retry: SqlStr,
    discard: SqlStr,
}

impl DeadLetters {
    /// Those of this side in this schema.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn new(pool: PgPool, schema: &str, side: Side) -> Result<Self, SchemaError> {
        let named = Schema::parse(schema)?;
        let sql =
            |text: &str| AssertSqlSafe(Arc::<str>::from(named.statement(text))).into_sql_str();
        let text = match side {
            Side::Outbox => include_str!("list_outbox.sql"),
            Side::Inbox => include_str!("list_inbox.sql"),
        };
        let list = sql(text);
        let list_bytes = sql(&format!(include_str!("as_bytes.sql"), letters = text));
        let count = sql(&format!("select count(*) from (\n{text}) as letters"));
        let (retry, discard) = match side {
            Side::Outbox => (include_str!("retry_outbox.sql"), DISCARD_OUTBOX),
            Side::Inbox => (of_inbox::RETRY, of_inbox::DISCARD),
        };
        let (retry, discard) = (sql(retry), sql(discard));
        Ok(Self { pool, side, list, list_bytes, count, retry, discard })
    }

    /// The unresolved ones that match, oldest first, `limit` at the most; with payloads up to 64 KiB.
    ///
    /// Text that is not UTF-8 is shown with its bytes as `\xff`.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn list(&self, filter: &Filter, limit: i64) -> Result<Vec<DeadLetter>, sqlx::Error> {
        self.read(filter, limit, LISTED_PAYLOAD).await
    }

    /// The first that matches, with its payload, however large it is.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn first(&self, filter: &Filter) -> Result<Option<DeadLetter>, sqlx::Error> {
        Ok(self.read(filter, 1, i64::MAX).await?.pop())
    }

    async fn read(
        &self,
        filter: &Filter,
        limit: i64,
        payload: i64,
    ) -> Result<Vec<DeadLetter>, sqlx::Error> {
        let rows = filtered(&self.list, filter, limit, payload).fetch_all(&self.pool).await;
        let rows = match rows {
            // The database cannot put some of it into UTF-8.
            Err(error) if is_of_data(&error) => {
                filtered(&self.list_bytes, filter, limit, payload).fetch_all(&self.pool).await?
            }
            rows => rows?,
        };
        rows.iter().map(read).collect()
    }

    /// How many unresolved ones match.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn count(&self, filter: &Filter) -> Result<i64, sqlx::Error> {
        filtered(&self.count, filter, i64::MAX, 0).fetch_one(&self.pool).await?.try_get(0)
    }

    /// Tries one again. `false` if it is not dead any more.
    ///
    /// On the outbox side, the relay ships it within about a second of its next poll. It comes behind the
    /// events of its key that went on without it, which with `order = "strict"` are none.
    ///
    /// # Errors
    /// [`RetryError`]; it is as it was then.
    pub async fn retry(&self, letter: &DeadLetter) -> Result<bool, RetryError> {
        let database = |source| RetryError::Database { event_id: letter.event_id.clone(), source };
        match self.side {
            Side::Outbox => {
                if !letter.whole {
                    return Err(RetryError::Incomplete {
                        event_id: letter.event_id.clone(),
                        position: letter.position.unwrap_or_default(),
                        error: letter.error.clone(),
                    });
                }
                let retried =
                    sqlx::query(self.retry.clone()).bind(letter.letter).fetch_one(&self.pool).await;
                retried.and_then(|row| row.try_get(0)).map_err(database)
            }
            Side::Inbox => {
                letter.event()?;
                let retried = sqlx::query(self.retry.clone())
                    .bind(&letter.owner)
                    .bind(letter.letter)
                    .bind(None::<&str>)
                    .execute(&self.pool)
                    .await;
                Ok(retried.map_err(database)?.rows_affected() == 1)
            }
        }
    }

    /// Marks one as not to be handled. `false` if somebody else resolved it meanwhile.
    ///
    /// # Errors
    /// What sqlx says.
    pub async fn discard(&self, letter: &DeadLetter) -> Result<bool, sqlx::Error> {
        let discard = sqlx::query(self.discard.clone());
        let discard = match self.side {
            Side::Outbox => discard.bind(letter.letter),
            Side::Inbox => discard.bind(&letter.owner).bind(letter.letter),
        };
        Ok(discard.execute(&self.pool).await?.rows_affected() == 1)
    }
}

/// The listing statement, or the one that counts what it would list.
fn filtered(
    statement: &SqlStr,
    filter: &Filter,
    limit: i64,
    payload: i64,
) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(statement.clone())
        .bind(filter.event_id.clone())
        .bind(filter.reason.clone())
        .bind(filter.topic.clone())
        .bind(filter.key.clone())
        .bind(filter.owner.clone())
        .bind(filter.older_than_s)
        .bind(limit)
        .bind(filter.state.map(State::as_str))
        .bind(filter.position)
        .bind(filter.source.clone())
        .bind(payload)
        .bind(filter.letter)
}

impl DeadLetter {
    /// The source that the event itself names.
    pub fn source(&self) -> Option<&str> {
        self.headers.get(header::SOURCE).map(String::as_str)
    }

    fn event(&self) -> Result<RawEvent, RetryError> {
        let not_an_event =
            |reason: String| RetryError::NotAnEvent { event_id: self.event_id.clone(), reason };
        let event_type = self.event_type.clone().ok_or_else(|| not_an_event(self.error.clone()))?;
        let id = EventId::parse(self.event_id.clone())
            .map_err(|error| not_an_event(error.to_string()))?;
        RawEvent::from_parts(
            id,
            event_type,
            self.topic.clone(),
            self.key.clone(),
            self.headers.clone(),
            self.payload.clone(),
        )
        .map_err(|error| not_an_event(error.to_string()))
    }
}

fn read(row: &PgRow) -> Result<DeadLetter, sqlx::Error> {
    let must = |name| Ok::<_, sqlx::Error>(text(row, name)?.unwrap_or_default());
    Ok(DeadLetter {
        letter: row.try_get("letter")?,
        position: row.try_get("position")?,
        owner: must("owner")?,
        event_id: must("event_id")?,
        event_type: text(row, "event_type")?,
        topic: must("topic")?,
        key: text(row, "key")?,
        // What is wrong with an event may be its headers.
        headers: serde_json::from_str(&must("headers")?).unwrap_or_default(),
        payload: row.try_get::<Option<Vec<u8>>, _>("payload")?.unwrap_or_default().into(),
        payload_bytes: row.try_get::<Option<i64>, _>("payload_bytes")?.unwrap_or_default(),
        state: State::read(row.try_get("state")?)?,
        reason: must("reason")?,
        error: must("error")?,
        attempts: row.try_get("attempts")?,
        whole: row.try_get("whole")?,
        age_seconds: row.try_get("age")?,
    })
}

/// A text as it came, or its bytes. What is not UTF-8 is shown as bytes.
fn text(row: &PgRow, name: &str) -> Result<Option<String>, sqlx::Error> {
    let value = row.try_get_raw(name)?;
    if value.is_null() {
        return Ok(None);
    }
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        shown.push_str(chunk.valid());
        shown.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    Ok(Some(shown))
}
