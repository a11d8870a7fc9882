//! A dead letter of a consumer.

use std::collections::BTreeMap;

use bytes::Bytes;
use pillarbox_event::{EventId, Identity, RawEvent, header};
use pillarbox_store::dead_letters::LetterState;
use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

/// An event that a consumer gave up. `Debug` shows neither payload nor header values.
#[derive(Clone)]
pub struct DeadLetter {
    /// The consumer that gave the event up.
    pub consumer: String,
    /// The letter's position, which identifies it even if ids are ambiguous.
    pub position: i64,
    /// The event's id, which is unique only within its source. `STREAM:sequence` if the message could not be read.
    pub event_id: String,
    /// The event's type. `None`: the message is no event.
    pub event_type: Option<String>,
    /// The topic.
    pub topic: String,
    /// The ordering key.
    pub key: Option<String>,
    /// The headers, by name.
    pub headers: BTreeMap<String, String>,
    /// The payload.
    pub payload: Bytes,
    /// `dead`: given up. `parked`: the consumer is to handle it, because it was retried, waits behind a dead event of
    /// its key in a strict order, or belongs to a failing key with many waiting events. `retried` and `discarded`:
    /// resolved.
    pub state: LetterState,
    /// Why it is here, in a word: `undecodable`, `permanent`, `attempts`, `kills`, `parked`, `waiting`.
    pub reason: String,
    /// The last error, with its sources.
    pub error: String,
    /// How many attempts failed.
    pub attempts: i32,
    /// When it first failed, counted or not.
    pub first_failed_at: OffsetDateTime,
    /// When the event was given up.
    pub dead_at: OffsetDateTime,
    /// The event's identity in the inbox, if it differs from the id.
    identity: Option<String>,
}

impl std::fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetter")
            .field("consumer", &self.consumer)
            .field("event_id", &self.event_id)
            .field("event_type", &self.event_type)
            .field("topic", &self.topic)
            .field("state", &self.state)
            .field("reason", &self.reason)
            .field("error", &self.error)
            .field("attempts", &self.attempts)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

impl DeadLetter {
    /// The source that the event names.
    pub fn source(&self) -> Option<&str> {
        self.headers.get(header::SOURCE).map(String::as_str)
    }

    /// The event. `None`: the message is no event.
    pub fn event(&self) -> Option<RawEvent> {
        let id = EventId::parse(self.event_id.clone()).ok()?;
        let (event_type, key) = (self.event_type.clone()?, self.key.clone());
        let event = RawEvent::from_parts(
            id,
            event_type,
            self.topic.clone(),
            key,
            self.headers.clone(),
            self.payload.clone(),
        )
        .ok()?;
        let identity = self.identity.as_ref().unwrap_or(&self.event_id);
        Some(event.identified_by(Identity::stored(identity.as_str())))
    }
}

/// Selects a dead letter by id or position. Functions that take it also take an id or a position.
///
/// The id is the event's own or, for a message that could not be read, `STREAM:sequence` or the id that it claims. Two
/// sources may use the same id, and several unreadable messages may claim it. A [position](DeadLetter::position)
/// identifies one letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhichLetter {
    /// The letter with this id.
    Id(String),
    /// The letter at this position.
    Position(i64),
}

impl From<&str> for WhichLetter {
    fn from(id: &str) -> Self {
        Self::Id(id.to_owned())
    }
}

impl From<&String> for WhichLetter {
    fn from(id: &String) -> Self {
        Self::Id(id.clone())
    }
}

impl From<String> for WhichLetter {
    fn from(id: String) -> Self {
        Self::Id(id)
    }
}

impl From<&EventId> for WhichLetter {
    fn from(id: &EventId) -> Self {
        Self::Id(id.to_string())
    }
}

impl From<i64> for WhichLetter {
    fn from(position: i64) -> Self {
        Self::Position(position)
    }
}

pub(super) fn read(row: &PgRow) -> Result<DeadLetter, sqlx::Error> {
    let sqlx::types::Json(headers) = row.try_get("headers")?;
    Ok(DeadLetter {
        consumer: row.try_get("consumer")?,
        event_id: row.try_get("event_id")?,
        identity: row.try_get("identity")?,
        event_type: row.try_get("event_type")?,
        topic: row.try_get("topic")?,
        key: row.try_get("key")?,
        headers,
        payload: row.try_get::<Vec<u8>, _>("payload")?.into(),
        state: LetterState::read(row.try_get("state")?)?,
        reason: row.try_get("reason")?,
        error: row.try_get("error")?,
        attempts: row.try_get("attempts")?,
        first_failed_at: row.try_get("first_failed_at")?,
        dead_at: row.try_get("dead_at")?,
        position: row.try_get("position")?,
    })
}
