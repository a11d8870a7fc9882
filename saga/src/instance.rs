//! How far one instance of a saga is.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pillarbox_event::{EventError, EventId, RawEvent};
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgRow;

/// The status of an instance; the crate's documentation has a drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// The process goes on.
    Running,
    /// The process has failed. The opposites of its steps are on their way, and it waits for their answers.
    Compensating,
    /// The process has ended well.
    Completed,
    /// The process has ended, and what it had done is undone.
    Failed,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Running, Self::Compensating, Self::Completed, Self::Failed];

    /// The name in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Compensating => "compensating",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// Whether nothing happens to the instance any more.
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is not the name of a status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a status; it must be running, compensating, completed or failed")]
pub struct NoStatus(String);

impl FromStr for Status {
    type Err = NoStatus;

    fn from_str(text: &str) -> Result<Self, NoStatus> {
        let found = Self::ALL.into_iter().find(|status| status.as_str() == text);
        found.ok_or_else(|| NoStatus(text.chars().take(60).collect()))
    }
}

/// All that is known of an instance, without the service's state.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    /// The name under which it is stored.
    pub(crate) saga: String,
    pub(crate) id: String,
    pub(crate) step: String,
    pub(crate) status: Status,
    pub(crate) version: i64,
    pub(crate) timers: Vec<PendingTimer>,
    /// The newest last.
    pub(crate) compensations: Vec<StoredEvent>,
    pub(crate) failure: Option<String>,
}

impl Instance {
    /// One that starts now.
    pub(crate) fn new(saga: &str, id: &str) -> Self {
        Self {
            saga: saga.to_owned(),
            id: id.to_owned(),
            step: "started".to_owned(),
            status: Status::Running,
            version: 0,
            timers: Vec::new(),
            compensations: Vec::new(),
            failure: None,
        }
    }

    /// The one in this row, which has the columns but `state` of its table.
    pub(crate) fn of_row(row: &PgRow, saga: &str, id: &str) -> Result<Self, NotRead> {
        let status: &str = row.try_get("status")?;
        let foreign = |what| format!("its {what} are not what this program writes");
        Ok(Self {
            saga: saga.to_owned(),
            id: id.to_owned(),
            step: row.try_get("step")?,
            status: status
                .parse()
                .map_err(|error: NoStatus| NotRead::Unreadable(error.to_string()))?,
            version: row.try_get("version")?,
            timers: serde_json::from_str(row.try_get("timers")?)
                .map_err(|_| NotRead::Unreadable(foreign("timers")))?,
            compensations: serde_json::from_str(row.try_get("compensations")?)
                .map_err(|_| NotRead::Unreadable(foreign("compensations")))?,
            failure: row.try_get("failure")?,
        })
    }
}

/// Why an instance was not read from its row.
#[derive(Debug)]
pub(crate) enum NotRead {
    Database(sqlx::Error),
    /// Somebody else has written what this program cannot read.
    Unreadable(String),
}

impl From<sqlx::Error> for NotRead {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// How the history names an event that was published.
pub(crate) fn in_history(event: &RawEvent) -> serde_json::Value {
    serde_json::json!({"id": event.id().as_str(), "type": event.event_type()})
}

/// A timer that has been set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingTimer {
    /// Its name, of which an instance has one timer at a time.
    pub name: String,
    /// The id of the scheduled event.
    pub event_id: String,
}

/// An event that is kept until it is published.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoredEvent {
    pub(crate) id: String,
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    topic: String,
    key: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    /// The payload, if it is a text that Postgres can keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

/// A stored event that cannot be read any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error(transparent)]
    Event(#[from] EventError),
    #[error("its payload is not base64")]
    Payload(#[from] base64::DecodeError),
}

impl StoredEvent {
    pub(crate) fn of(event: RawEvent) -> Self {
        let (id, event_type, topic, key, headers, payload) = event.into_parts();
        let text = String::from_utf8(payload.to_vec()).ok().filter(|text| !text.contains('\0'));
        let payload_base64 = text.is_none().then(|| STANDARD.encode(&payload));
        let id = id.to_string();
        Self { id, event_type, topic, key, headers, payload: text, payload_base64 }
    }

    pub(crate) fn into_event(self) -> Result<RawEvent, Unreadable> {
        let payload = match (self.payload, self.payload_base64) {
            (_, Some(base64)) => STANDARD.decode(base64)?,
            (text, None) => text.unwrap_or_default().into_bytes(),
        };
        let id = EventId::parse(self.id)?;
        let Self { event_type, topic, key, headers, .. } =
            Self { id: String::new(), payload: None, payload_base64: None, ..self };
        Ok(RawEvent::from_parts(id, event_type, topic, key, headers, payload.into())?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_the_same_after_it_was_stored_whatever_its_payload_is() {
        for payload in ["{\"a\":\"\u{e9}\"}".as_bytes(), b"", b"a\0b", &[0xff, 0xfe]] {
            let event = RawEvent::builder("flight.cancel", "flights.cancel")
                .key("42")
                .header("x-tenant", "acme")
                .payload(payload.to_vec())
                .build()
                .unwrap();
            let json = serde_json::to_string(&StoredEvent::of(event.clone())).unwrap();
            assert!(!json.contains("\\u0000"), "Postgres refuses it: {json}");
            let back: StoredEvent = serde_json::from_str(&json).unwrap();
            assert_eq!(back.into_event().unwrap(), event);
        }
    }

    #[test]
    fn a_status_is_read_by_its_name() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert!("Running".parse::<Status>().is_err());
    }
}
