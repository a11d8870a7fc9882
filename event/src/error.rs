//! What can be wrong with an event.

/// Why an event was refused. Nothing has been written when it is returned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// The id is empty, longer than 255 bytes, or holds a control character.
    #[error(
        "event id {id:?} is refused: {problem}; an id is 1 to 255 bytes without control characters"
    )]
    Id {
        /// The start of the refused id.
        id: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The topic cannot be published to.
    #[error(
        "topic {topic:?} is refused: {problem}; a topic is a NATS subject such as \"orders.placed\": \
         words parted by single dots, without wildcards, spaces or a leading \"$\", at most 255 bytes"
    )]
    Topic {
        /// The start of the refused topic.
        topic: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An attribute (type, key, source, ...) is empty, too long, or holds a control character.
    #[error("event attribute {name} = {value:?} is refused: {problem}")]
    Attribute {
        /// The attribute's header name, such as `ce-type`.
        name: String,
        /// The start of the refused value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A header's name is not one, or is set by Pillarbox itself.
    #[error("header name {name:?} is refused: {problem}")]
    HeaderName {
        /// The refused name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A header's value cannot be carried, for instance because it holds a line break.
    #[error("the value of header {name} is refused: {problem}")]
    HeaderValue {
        /// The header's name.
        name: String,
        /// What is wrong with its value.
        problem: &'static str,
    },
    /// The typed event could not be serialized.
    #[error("event of type {event_type} cannot be written as JSON")]
    Encode {
        /// The event's type.
        event_type: &'static str,
        /// What serde_json said.
        #[source]
        source: serde_json::Error,
    },
}

/// Why a message or a raw event could not be read as what it was asked to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A header that every event carries is missing.
    #[error("the message has no {name} header, so it is not a CloudEvent in binary mode")]
    MissingHeader {
        /// The header's name.
        name: &'static str,
    },
    /// `ce-specversion` names a version this library does not know.
    #[error("CloudEvents version {version:?} is not supported; 1.0 is")]
    SpecVersion {
        /// The version found.
        version: String,
    },
    /// An attribute or header breaks the rules for events.
    #[error(transparent)]
    Invalid(#[from] EventError),
    /// The event is of another type than the one asked for.
    #[error("event {id} is of type {found}, not {expected}")]
    Type {
        /// The event's id.
        id: String,
        /// The type asked for.
        expected: &'static str,
        /// The type found.
        found: String,
    },
    /// The payload is not the JSON of the type asked for.
    #[error("the payload of event {id} ({event_type}) is not what its type says")]
    Payload {
        /// The event's id.
        id: String,
        /// The event's type.
        event_type: String,
        /// What serde_json said.
        #[source]
        source: serde_json::Error,
    },
}

/// The first characters of a refused text, so that an error never carries all of it.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(60).collect()
}
