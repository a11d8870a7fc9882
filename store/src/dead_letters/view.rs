//! An operator's view of the dead letters of either side. What an operator changes is in `change.rs`.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::TryStreamExt;
use pillarbox_event::{EventId, RawEvent, header};
use serde::Serialize;
use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::query::Query;
use sqlx::{PgPool, Row, SqlStr, ValueRef};

use crate::bad_data::is_of_data;
use crate::dead_letters::change::Statements;
use crate::dead_letters::fingerprint::READ_CHARS;
use crate::dead_letters::groups::{Counting, Groups, Outline};
use crate::dead_letters::state::LetterState;
use crate::schema::{Schema, SchemaError};

/// The largest payload that a list contains, in bytes.
const LISTED_PAYLOAD: i64 = 64 * 1024;

/// Whose dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The producer's: events that the relay could not ship.
    Outbox,
    /// The consumers': events that could not be handled.
    Inbox,
}

/// Which dead letters. A field that is `None` matches all.
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
    /// The state. `None`: `dead` or `parked`, the unresolved ones.
    pub state: Option<LetterState>,
    /// The position: in the outbox, or among the dead letters of the inbox.
    pub position: Option<i64>,
    /// The source that the event names.
    pub source: Option<String>,
    /// The numbers of the letters. One event id may have several letters: of two relays, or from before the table was
    /// made anew.
    pub letters: Option<Vec<i64>>,
    /// The event's type, in full.
    pub event_type: Option<String>,
    /// What the error contains, in upper or lower case. `%` stands for any text.
    pub error_like: Option<String>,
    /// Given up at most this long ago, in seconds.
    pub since_s: Option<i64>,
    /// The name of their [group](super::Group).
    pub group: Option<String>,
}

/// What an operator sees of a dead letter of either side. `Debug` shows neither payload nor header values; `Serialize`
/// shows the headers.
#[derive(Clone, Serialize)]
pub struct LetterView {
    /// The letter's number.
    pub letter: i64,
    /// The position: in the outbox, or among the dead letters of the inbox.
    pub position: Option<i64>,
    /// The relay, or the consumer, that gave it up.
    pub owner: String,
    /// The event's id, which is unique only within its source. `STREAM:sequence` if the message could not be read.
    pub event_id: String,
    /// The event's type. `None`: the message is no event.
    pub event_type: Option<String>,
    /// The topic.
    pub topic: String,
    /// The ordering key.
    pub key: Option<String>,
    /// The headers, by name. Empty if they are not an object of strings, or exceed 128 KiB.
    pub headers: BTreeMap<String, String>,
    /// The payload. Empty if it is too large for a list: see [`DeadLetters::list`].
    #[serde(skip)]
    pub payload: Bytes,
    /// The size of the payload.
    pub payload_bytes: i64,
    /// The letter's state.
    pub state: LetterState,
    /// Why the event was given up, in a word.
    pub reason: String,
    /// The last error, with its sources.
    pub error: String,
    /// How many attempts failed.
    pub attempts: i32,
    /// Whether the letter holds the whole event. If not, the event's row was damaged, or too large to copy.
    pub whole: bool,
    /// How long ago the event was given up, in seconds.
    pub age_seconds: f64,
    /// When an operator edited it last. `None`: nobody has.
    pub edited_at: Option<String>,
    /// Whether `headers` are all of the event's headers.
    #[serde(skip)]
    pub(super) has_all_headers: bool,
}

impl std::fmt::Debug for LetterView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LetterView")
            .field("owner", &self.owner)
            .field("event_id", &self.event_id)
            .field("topic", &self.topic)
            .field("reason", &self.reason)
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

/// Why a dead letter could not be retried. The letter is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetryError {
    /// The database failed.
    #[error("dead letter {event_id} was not retried: the database failed")]
    Database {
        /// The event's id.
        event_id: String,
        /// The error of sqlx.
        #[source]
        source: sqlx::Error,
    },
    /// The letter holds only a part of the event.
    #[error(
        "dead letter {event_id} cannot be retried, because only a part of the event could be kept ({error}); \
         mend its row in the outbox at position {position}, publish what it says as a new event, and discard this letter"
    )]
    Incomplete {
        /// The event's id.
        event_id: String,
        /// The position of its row in the outbox.
        position: i64,
        /// Why the rest is missing.
        error: String,
    },
    /// The message is no event, so it cannot be sent as one.
    #[error(
        "dead letter {event_id} cannot be retried, because it is no event: {reason}; discard it"
    )]
    NotAnEvent {
        /// The letter's id.
        event_id: String,
        /// What is wrong with the message.
        reason: String,
    },
}

/// The dead letters of one side of one database.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    pub(super) pool: PgPool,
    pub(super) schema: Schema,
    pub(super) side: Side,
    list: SqlStr,
    /// The same list, with texts as bytes.
    list_bytes: SqlStr,
    outline: SqlStr,
    count: SqlStr,
    pub(super) changes: Statements,
}

impl DeadLetters {
    /// The dead letters of this side in this schema. Connects to nothing yet.
    ///
    /// # Errors
    /// [`SchemaError`] if the schema's name cannot be used.
    pub fn new(pool: PgPool, schema: &str, side: Side) -> Result<Self, SchemaError> {
        let named = Schema::parse(schema)?;
        let sql = |text: &str| named.statement(text);
        let letters = match side {
            Side::Outbox => include_str!("letters_outbox.sql"),
            Side::Inbox => include_str!("letters_inbox.sql"),
        };
        let text = format!(include_str!("list.sql"), letters = letters);
        let list = sql(&text);
        let list_bytes = sql(&format!(include_str!("as_bytes.sql"), letters = text));
        let outline = sql(&format!(
            include_str!("outline.sql"),
            letters = text,
            error_chars = READ_CHARS + 1
        ));
        let count = sql(&format!("select count(*) from (\n{text}) as letters"));
        let changes = Statements::new(&named, side);
        Ok(Self { pool, side, list, list_bytes, outline, count, changes, schema: named })
    }

    /// The letters that match, oldest first, at most `limit`; the unresolved ones, unless the filter names a state.
    /// Payloads larger than 64 KiB are left out.
    ///
    /// Bytes that are not UTF-8 are shown as `\xff`.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn list(&self, filter: &Filter, limit: i64) -> Result<Vec<LetterView>, sqlx::Error> {
        self.read(filter, limit, LISTED_PAYLOAD).await
    }

    /// The oldest unresolved letter that matches, with its whole payload.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn first(&self, filter: &Filter) -> Result<Option<LetterView>, sqlx::Error> {
        Ok(self.read(filter, 1, i64::MAX).await?.pop())
    }

    async fn read(
        &self,
        filter: &Filter,
        limit: i64,
        payload: i64,
    ) -> Result<Vec<LetterView>, sqlx::Error> {
        let narrowed;
        let filter = match filter.group {
            Some(_) => {
                let letters = Some(self.numbers(filter, limit).await?);
                narrowed = Filter { letters, ..filter.clone() };
                &narrowed
            }
            None => filter,
        };
        let rows = filtered(&self.list, filter, limit, payload).fetch_all(&self.pool).await;
        let rows = match rows {
            // The database cannot convert one of the texts to UTF-8.
            Err(error) if is_of_data(&error) => {
                filtered(&self.list_bytes, filter, limit, payload).fetch_all(&self.pool).await?
            }
            rows => rows?,
        };
        rows.iter().map(read).collect()
    }

    /// The unresolved letters that match, in groups. It reads them one at a time, without headers and payloads.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn groups(&self, filter: &Filter) -> Result<Groups, sqlx::Error> {
        self.groups_of(filter, i64::MAX).await
    }

    /// As [`groups`](Self::groups), of the oldest `most` letters that match. With a filter by group, letters of other
    /// groups are read as well and do not count.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn groups_of(&self, filter: &Filter, most: i64) -> Result<Groups, sqlx::Error> {
        let mut counting = Counting::default();
        self.outlines(filter, most, |letter| counting.add(letter)).await?;
        Ok(counting.done())
    }

    /// The numbers of the unresolved letters that match, oldest first, at most `limit`.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn numbers(&self, filter: &Filter, limit: i64) -> Result<Vec<i64>, sqlx::Error> {
        let mut numbers = Vec::new();
        self.outlines(filter, limit, |letter| numbers.push(letter.letter)).await?;
        Ok(numbers)
    }

    /// Reads the unresolved letters that match one at a time, oldest first, at most `limit`. The database does not know
    /// the groups, so those of other groups are read as well.
    async fn outlines(
        &self,
        filter: &Filter,
        limit: i64,
        mut found: impl FnMut(Outline),
    ) -> Result<(), sqlx::Error> {
        let rows = if filter.group.is_some() { i64::MAX } else { limit };
        let mut rows = filtered(&self.outline, filter, rows, 0).fetch(&self.pool);
        let mut left = limit;
        while left > 0
            && let Some(row) = rows.try_next().await?
        {
            let letter = outline(&row)?;
            if filter.group.as_ref().is_none_or(|group| *group == letter.group()) {
                left -= 1;
                found(letter);
            }
        }
        Ok(())
    }

    /// How many unresolved letters match.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn count(&self, filter: &Filter) -> Result<i64, sqlx::Error> {
        if filter.group.is_some() {
            let mut count = 0;
            self.outlines(filter, i64::MAX, |_| count += 1).await?;
            return Ok(count);
        }
        filtered(&self.count, filter, i64::MAX, 0).fetch_one(&self.pool).await?.try_get(0)
    }
}

/// The pattern of an error that contains this text, in which only `%` has a meaning.
fn containing(text: &str) -> String {
    format!("%{}%", text.replace('\\', r"\\").replace('_', r"\_"))
}

/// The statement that lists, or the one that counts, with its parameters.
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
        .bind(filter.state.map(LetterState::as_str))
        .bind(filter.position)
        .bind(filter.source.clone())
        .bind(payload)
        .bind(filter.letters.clone())
        .bind(filter.event_type.clone())
        .bind(filter.error_like.as_deref().map(containing))
        .bind(filter.since_s)
}

impl LetterView {
    /// The source that the event names.
    pub fn source(&self) -> Option<&str> {
        self.headers.get(header::SOURCE).map(String::as_str)
    }

    pub(super) fn event(&self) -> Result<RawEvent, RetryError> {
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

fn outline(row: &PgRow) -> Result<Outline, sqlx::Error> {
    let must = |name| Ok::<_, sqlx::Error>(text(row, name)?.unwrap_or_default());
    Ok(Outline {
        letter: row.try_get("letter")?,
        owner: must("owner")?,
        event_type: text(row, "event_type")?,
        reason: must("reason")?,
        error: must("error")?,
        state: LetterState::read(row.try_get("state")?)?,
        age_seconds: row.try_get("age")?,
    })
}

fn read(row: &PgRow) -> Result<LetterView, sqlx::Error> {
    let must = |name| Ok::<_, sqlx::Error>(text(row, name)?.unwrap_or_default());
    // Headers that are no object of strings may be the reason for the letter.
    let headers = serde_json::from_str(&must("headers")?);
    Ok(LetterView {
        letter: row.try_get("letter")?,
        position: row.try_get("position")?,
        owner: must("owner")?,
        event_id: must("event_id")?,
        event_type: text(row, "event_type")?,
        topic: must("topic")?,
        key: text(row, "key")?,
        has_all_headers: headers.is_ok(),
        headers: headers.unwrap_or_default(),
        payload: row.try_get::<Option<Vec<u8>>, _>("payload")?.unwrap_or_default().into(),
        payload_bytes: row.try_get::<Option<i64>, _>("payload_bytes")?.unwrap_or_default(),
        state: LetterState::read(row.try_get("state")?)?,
        reason: must("reason")?,
        error: must("error")?,
        attempts: row.try_get("attempts")?,
        whole: row.try_get("whole")?,
        age_seconds: row.try_get("age")?,
        edited_at: row.try_get("edited_at")?,
    })
}

/// A text column, which the statement returns as text or as bytes. Bytes that are not UTF-8 become `\xff`.
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
