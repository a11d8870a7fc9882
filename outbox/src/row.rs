//! A row of the outbox, for any client of Postgres.

use std::collections::BTreeMap;

use bytes::Bytes;
use pillarbox_event::{EventId, RawEvent, header};
use uuid::Uuid;

use crate::error::OutboxError;

/// What is written to the outbox for an event: the values of the parameters of
/// [`Outbox::insert_statement`](crate::Outbox::insert_statement), for clients other than sqlx.
///
/// | parameter | type | value |
/// |---|---|---|
/// | `$1` | `uuid` | [`event_id`](Self::event_id) |
/// | `$2` | `text` | [`event_type`](Self::event_type) |
/// | `$3` | `text` | [`topic`](Self::topic) |
/// | `$4` | `text` or null | [`key`](Self::key) |
/// | `$5` | `text` | [`headers`](Self::headers): JSON |
/// | `$6` | `bytea` | [`payload`](Self::payload) |
///
/// A client must give the types of the parameters. If it leaves them to the server, `$5` is a `jsonb`.
///
/// The row already has the causation, correlation and trace of the event that this task handles. [`Outbox::row`] makes
/// one; it is written when the statement has run in your transaction.
///
/// [`Outbox::row`]: crate::Outbox::row
#[derive(Clone, Debug)]
pub struct OutboxRow {
    pub(crate) id: Uuid,
    pub(crate) headers: String,
    pub(crate) event: RawEvent,
}

impl OutboxRow {
    /// Fails if the event's id is not a UUID.
    pub(crate) fn of(event: RawEvent) -> Result<Self, OutboxError> {
        let id =
            event.id().as_uuid().ok_or_else(|| OutboxError::Id { id: event.id().to_string() })?;
        Ok(Self { id, headers: headers(&event)?, event })
    }

    /// The id, for the database.
    pub fn event_id(&self) -> Uuid {
        self.id
    }

    /// The id, as [`publish`](crate::publish()) returns it.
    pub fn id(&self) -> &EventId {
        self.event.id()
    }

    /// The type.
    pub fn event_type(&self) -> &str {
        self.event.event_type()
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        self.event.topic()
    }

    /// The key, within which events keep their order.
    pub fn key(&self) -> Option<&str> {
        self.event.key()
    }

    /// The headers that are not the default, as a JSON object from text to text.
    pub fn headers(&self) -> &str {
        &self.headers
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        self.event.payload()
    }
}

#[cfg(feature = "tokio-postgres")]
impl OutboxRow {
    /// The error when another client than sqlx fails.
    pub(crate) fn not_written(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> OutboxError {
        OutboxError::Client {
            id: self.id().to_string(),
            event_type: self.event_type().to_owned(),
            source: source.into(),
        }
    }

    /// The error when the answer does not belong to the statement that was sent.
    pub(crate) fn another_statement(&self) -> OutboxError {
        self.not_written(
            "another statement ran instead of this one, because the connection goes through a pooler in transaction \
             mode; roll the transaction back, and see docs/poolers.md",
        )
    }
}

/// The value of the headers column: all headers except those that have their default.
fn headers(event: &RawEvent) -> Result<String, OutboxError> {
    let said: BTreeMap<&str, &str> = event
        .headers()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|said| *said != (header::CONTENT_TYPE, header::JSON))
        .collect();
    serde_json::to_string(&said).map_err(|error| OutboxError::Database {
        id: event.id().to_string(),
        event_type: event.event_type().to_owned(),
        source: sqlx::Error::Encode(Box::new(error)),
    })
}
