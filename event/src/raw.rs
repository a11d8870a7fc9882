//! An event as it is stored and sent: validated attributes, headers and payload bytes.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::identity::is_uuid;
use crate::{EventError, EventId, Identity, header, topic};

/// An event whose payload is bytes.
///
/// It is always valid: its topic can be published to, its id, type and key are within their limits, and its headers
/// have no line breaks. Attributes other than id, type, topic and key are headers with the names in [`header`], as
/// in the outbox table. Applications can add headers of their own.
///
/// Two events are equal if their attributes, headers and payloads are equal. Whether they are the same event is
/// decided by their [`identity`](Self::identity). `Debug` shows the payload's size, never its content.
#[derive(Clone)]
pub struct RawEvent {
    pub(crate) id: EventId,
    pub(crate) event_type: String,
    pub(crate) topic: String,
    pub(crate) key: Option<String>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) payload: Bytes,
    pub(crate) origin: Origin,
}

/// What determines an event's identity.
#[derive(Clone, Debug, Default)]
pub(crate) enum Origin {
    /// Its source and id.
    #[default]
    Any,
    /// Its id alone, because a relay ships it.
    Outbox,
    /// This identity, which was stored, or comes from headers with more than one source and id.
    Stored(Identity),
}

impl RawEvent {
    /// Starts to build an event of this type for this topic, with a new id and an empty payload.
    pub fn builder(event_type: impl Into<String>, topic: impl Into<String>) -> RawEventBuilder {
        RawEventBuilder {
            event: Self {
                id: EventId::generate(),
                event_type: event_type.into(),
                topic: topic.into(),
                key: None,
                headers: BTreeMap::new(),
                payload: Bytes::new(),
                origin: Origin::Any,
            },
            error: None,
        }
    }

    /// Puts together an event that was stored. `headers` are the attributes other than id, type, topic and key, and
    /// the headers of the application.
    ///
    /// # Errors
    /// [`EventError`], for the first value that is refused.
    pub fn from_parts(
        id: EventId,
        event_type: String,
        topic: String,
        key: Option<String>,
        headers: BTreeMap<String, String>,
        payload: Bytes,
    ) -> Result<Self, EventError> {
        let origin = Origin::Any;
        let mut event = Self { id, event_type, topic, key, headers, payload, origin };
        let headers = &event.headers;
        // This library stores headers in canonical form. A service that writes SQL may have stored them in another.
        if headers.keys().all(|name| header::kept_as(name) == name.as_str())
            && headers.get(header::CONTENT_TYPE).is_none_or(|value| value != header::JSON)
        {
            for (name, value) in headers {
                header::validate(name, value)?;
            }
        } else {
            for (name, value) in std::mem::take(&mut event.headers) {
                event.set_header(&name, value)?;
            }
        }
        event.validated()
    }

    /// The parts that [`from_parts`](Self::from_parts) takes, in the same order.
    pub fn into_parts(
        self,
    ) -> (EventId, String, String, Option<String>, BTreeMap<String, String>, Bytes) {
        (self.id, self.event_type, self.topic, self.key, self.headers, self.payload)
    }

    /// The id. It is the same at every delivery.
    pub fn id(&self) -> &EventId {
        &self.id
    }

    /// What tells this event from all others, the same at every delivery, at most 36 bytes: see
    /// [`identity`](crate::identity). An id alone is unique only within its source.
    pub fn identity(&self) -> Identity {
        match &self.origin {
            Origin::Stored(identity) => identity.clone(),
            Origin::Outbox => Identity::stored(self.id.as_str()),
            Origin::Any => Identity::of(self.source(), self.id.as_str()),
        }
    }

    /// The same event with this identity, under which it was stored.
    #[must_use]
    pub fn identified_by(mut self, identity: Identity) -> Self {
        self.origin = if identity == Identity::of(self.source(), self.id.as_str()) {
            Origin::Any
        } else if identity.as_str() == self.id.as_str() {
            Origin::Outbox
        } else {
            Origin::Stored(identity)
        };
        self
    }

    /// The same event, marked as one that a relay ships from an outbox. Its id, a UUID, then tells it from all others,
    /// whatever source the relay is set to name. It is sent with the header `pillarbox-outbox`. If the id is not a
    /// UUID, the event cannot come from an outbox, and nothing changes.
    #[must_use]
    pub fn shipped(mut self) -> Self {
        if is_uuid(self.id.as_str()) {
            self.origin = Origin::Outbox;
        }
        self
    }

    /// Whether the event is marked as one that a relay ships from an outbox.
    pub fn is_shipped(&self) -> bool {
        matches!(self.origin, Origin::Outbox)
    }

    /// The CloudEvents type.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The NATS subject.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The ordering key.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The payload.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// All headers except id, type, key and version, by name.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.headers
    }

    /// One header, by its exact name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The service that produced the event.
    pub fn source(&self) -> Option<&str> {
        self.header(header::SOURCE)
    }

    /// The version of the type: 1 if the event does not say another. `None` if the header
    /// [`ce-typeversion`](header::TYPE_VERSION) is not a whole number from 1.
    pub fn version(&self) -> Option<u32> {
        match self.header(header::TYPE_VERSION) {
            None => Some(1),
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|version| *version > 0)
            }
            Some(_) => None,
        }
    }

    /// When it happened. `None` if the header is missing, or if a foreign producer wrote something other than RFC 3339.
    pub fn time(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(self.header(header::TIME)?, &Rfc3339).ok()
    }

    /// The payload's media type; `application/json` if none was set.
    pub fn content_type(&self) -> &str {
        self.header(header::CONTENT_TYPE).unwrap_or(header::JSON)
    }

    /// The id that all events share that go back to the same first event.
    pub fn correlation_id(&self) -> Option<&str> {
        self.header(header::CORRELATION_ID)
    }

    /// The id of the event whose handling produced this one.
    pub fn causation_id(&self) -> Option<&str> {
        self.header(header::CAUSATION_ID)
    }

    /// The W3C trace context.
    pub fn traceparent(&self) -> Option<&str> {
        self.header(header::TRACEPARENT)
    }

    /// Sets a header, like [`RawEventBuilder::header`].
    ///
    /// # Errors
    /// [`EventError::HeaderName`] or [`EventError::HeaderValue`], as for [`header::validate`].
    pub fn with_header(
        mut self,
        name: impl Into<String>,
        value: impl Into<String>,
    ) -> Result<Self, EventError> {
        self.set_header(&name.into(), value.into())?;
        Ok(self)
    }

    /// Sets a header under the name under which it is kept, so that it comes back from the wire as it was set.
    fn set_header(&mut self, name: &str, value: String) -> Result<(), EventError> {
        let name = header::kept_as(name);
        header::validate(&name, &value)?;
        if name == header::CONTENT_TYPE && value == header::JSON {
            // It is the default, which is not kept.
            self.headers.remove(header::CONTENT_TYPE);
        } else {
            self.headers.insert(name.into_owned(), value);
        }
        Ok(())
    }

    fn validated(self) -> Result<Self, EventError> {
        header::validate_attribute(header::TYPE, &self.event_type)?;
        topic::validate(&self.topic)?;
        if let Some(key) = &self.key {
            header::validate_attribute(header::PARTITION_KEY, key)?;
        }
        Ok(self)
    }
}

impl PartialEq for RawEvent {
    fn eq(&self, other: &Self) -> bool {
        let Self { id, event_type, topic, key, headers, payload, origin: _ } = self;
        (id, event_type, topic, key) == (&other.id, &other.event_type, &other.topic, &other.key)
            && (headers, payload) == (&other.headers, &other.payload)
    }
}

impl Eq for RawEvent {}

impl fmt::Debug for RawEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawEvent")
            .field("id", &self.id)
            .field("event_type", &self.event_type)
            .field("topic", &self.topic)
            .field("key", &self.key)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// Builds a [`RawEvent`]. [`build`](Self::build) reports the first value that is refused.
#[derive(Debug)]
#[must_use]
pub struct RawEventBuilder {
    event: RawEvent,
    error: Option<EventError>,
}

impl RawEventBuilder {
    /// Sets the id. The default is a new UUID of version 7.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        match EventId::parse(id) {
            Ok(id) => self.event.id = id,
            Err(error) => self.fail(error),
        }
        self
    }

    /// Sets the ordering key: 1 to 255 bytes without control characters.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.event.key = Some(key.into());
        self
    }

    /// Sets the producing service, a URI reference such as `/shop/orders`.
    pub fn source(self, source: impl Into<String>) -> Self {
        self.header(header::SOURCE, source)
    }

    /// Sets what the event is about, within its source.
    pub fn subject(self, subject: impl Into<String>) -> Self {
        self.header(header::SUBJECT, subject)
    }

    /// Sets the version of the type. The default is 1. 0 is refused, because no event has it.
    pub fn version(mut self, version: u32) -> Self {
        match version {
            0 => {
                let name = header::TYPE_VERSION.to_owned();
                self.fail(EventError::HeaderValue { name, problem: "versions start at 1" });
            }
            // It is the default, which is not sent.
            1 => {
                self.event.headers.remove(header::TYPE_VERSION);
            }
            _ => self = self.header(header::TYPE_VERSION, version.to_string()),
        }
        self
    }

    /// Sets the payload's media type. The default is `application/json`.
    pub fn content_type(self, content_type: impl Into<String>) -> Self {
        self.header(header::CONTENT_TYPE, content_type)
    }

    /// Sets a header. Names that this library knows are kept in lower case, and `ce-datacontenttype` and
    /// `ce-traceparent` are kept under their plain names.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        if let Err(error) = self.event.set_header(&name.into(), value.into()) {
            self.fail(error);
        }
        self
    }

    /// Sets the payload.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.event.payload = payload.into();
        self
    }

    /// Checks everything and returns the event.
    ///
    /// # Errors
    /// [`EventError`], for the first thing that is refused.
    pub fn build(self) -> Result<RawEvent, EventError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.event.validated()
    }

    fn fail(&mut self, error: EventError) {
        self.error.get_or_insert(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_payload_or_a_header_value() {
        let event = RawEvent::builder("a", "b")
            .header("authorization", "hunter2")
            .payload("4111 1111 1111 1111")
            .build()
            .unwrap();
        let shown = format!("{event:?}");
        assert!(!shown.contains("4111") && !shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("payload_bytes: 19"), "{shown}");
    }

    #[test]
    fn the_first_thing_refused_is_reported() {
        let error = RawEvent::builder("t", "a b").header("x", "1\n2").id("").build().unwrap_err();
        assert!(matches!(error, EventError::HeaderValue { .. }), "{error}");
        assert!(matches!(
            RawEvent::builder("", "a").build(),
            Err(EventError::Attribute { problem: "it is empty", .. })
        ));
        assert!(matches!(
            RawEvent::builder("t", "a").key("k".repeat(256)).build(),
            Err(EventError::Attribute { problem: "it is longer than 255 bytes", .. })
        ));
        assert!(matches!(RawEvent::builder("t", "a b").build(), Err(EventError::Topic { .. })));
    }
}
