//! The id of an event, which stays the same from end to end.

use std::fmt;

use uuid::Uuid;

use crate::error::{EventError, excerpt};

/// An event's id: 1 to 255 bytes without control characters.
///
/// Events made by this library get a UUID of version 7, so their ids sort by the time at which they were made. The ids
/// of other producers are kept as they are.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(String);

impl EventId {
    /// The longest id, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Makes a new id: a UUID of version 7.
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string())
    }

    /// Takes an id as it is.
    ///
    /// # Errors
    /// [`EventError::Id`] if it is empty, too long, or holds a control character.
    pub fn parse(id: impl Into<String>) -> Result<Self, EventError> {
        let id = id.into();
        let problem = if id.is_empty() {
            "it is empty"
        } else if id.len() > Self::MAX_BYTES {
            "it is longer than 255 bytes"
        } else if id.chars().any(char::is_control) {
            "it holds a control character"
        } else {
            return Ok(Self(id));
        };
        Err(EventError::Id { id: excerpt(&id), problem })
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as a UUID, if it is one. Only such events can be written to an outbox.
    pub fn as_uuid(&self) -> Option<Uuid> {
        Uuid::try_parse(&self.0).ok()
    }
}

impl From<Uuid> for EventId {
    fn from(id: Uuid) -> Self {
        Self(id.to_string())
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_another_producer_is_taken_as_it_is() {
        assert_eq!(EventId::parse("order/42#paid").unwrap().as_str(), "order/42#paid");
        assert_eq!(EventId::parse("ä".repeat(127)).unwrap().as_str().len(), 254);
    }

    #[test]
    fn an_empty_long_or_unprintable_id_is_refused_and_the_error_stays_short() {
        for (id, problem) in [
            (String::new(), "it is empty"),
            ("x".repeat(256), "it is longer than 255 bytes"),
            ("a\nb".to_owned(), "it holds a control character"),
        ] {
            let error = EventId::parse(id).unwrap_err();
            assert!(
                matches!(&error, EventError::Id { problem: p, .. } if *p == problem),
                "{error}"
            );
            assert!(error.to_string().len() < 250);
        }
    }

    #[test]
    fn generated_ids_are_uuids_that_sort_by_time() {
        let ids: Vec<_> = (0..100).map(|_| EventId::generate()).collect();
        assert!(ids.iter().all(|id| id.as_uuid().is_some()));
        assert!(ids.is_sorted());
    }
}
