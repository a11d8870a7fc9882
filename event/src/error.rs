//! Why an event is refused or cannot be read.

/// Why an event was refused. Nothing has been written when this error is returned.
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
         words separated by single dots, without wildcards, spaces or a leading \"$\", at most 255 bytes"
    )]
    Topic {
        /// The start of the refused topic.
        topic: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The topic of a typed event does not match the pattern that its type names, so no consumer would read it.
    #[error(
        "topic {topic:?} of an event of type {event_type} does not match its TOPIC {pattern:?}, and no consumer of \
         that type would read it; a field in a topic must be one word without dots, spaces or wildcards"
    )]
    Pattern {
        /// The event's type.
        event_type: &'static str,
        /// The start of the refused topic.
        topic: String,
        /// The pattern that it should match: [`Event::TOPIC`](crate::Event::TOPIC).
        pattern: &'static str,
    },
    /// An attribute (type, key, source, ...) is empty, too long, or holds a control character.
    #[error(
        "event attribute {name} is refused: {problem}; it must be 1 to 255 bytes without control characters"
    )]
    Attribute {
        /// The attribute's header name, such as `ce-type`.
        name: String,
        /// The start of the refused value, which is not part of the error's text.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A header's name is not allowed, or Pillarbox itself sets this header.
    #[error("header name {name:?} is refused: {problem}; choose another name")]
    HeaderName {
        /// The refused name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A header's value cannot be sent, for instance because it holds a line break.
    #[error(
        "the value of header {name} is refused: {problem}; a value must be at most 8 KiB, without control \
         characters, and without white space around it"
    )]
    HeaderValue {
        /// The header's name.
        name: String,
        /// What is wrong with its value.
        problem: &'static str,
    },
    /// The typed event could not be serialized.
    #[error(
        "an event of type {event_type} cannot be written as JSON; correct how this type is serialized"
    )]
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
    /// A header that every event must have is missing.
    #[error("the message has no {name} header, so it is not a CloudEvent in binary mode")]
    MissingHeader {
        /// The header's name.
        name: &'static str,
    },
    /// `ce-specversion` names a version that this library does not know.
    #[error("the message's CloudEvents version is not supported; it must be 1.0")]
    SpecVersion {
        /// The version found, which is not part of the error's text: it is a header's value.
        version: String,
    },
    /// An attribute or header breaks the rules for events.
    #[error(transparent)]
    Invalid(#[from] EventError),
    /// The event has another type than the one asked for.
    #[error("event {id} has type {found}, not {expected}")]
    Type {
        /// The event's id.
        id: String,
        /// The type asked for.
        expected: &'static str,
        /// The type found.
        found: String,
    },
    /// The event has a newer version than the type asked for.
    #[error(
        "event {id} of type {event_type} has version {found}, and this program knows versions up to {newest}; deploy a \
         program that knows version {found}, and retry the dead letter then"
    )]
    NewerVersion {
        /// The event's id.
        id: String,
        /// The event's type.
        event_type: String,
        /// Its version.
        found: u32,
        /// The version of the type asked for: [`Event::VERSION`](crate::Event::VERSION).
        newest: u32,
    },
    /// The event has an older version, and no type of that version was named.
    #[error(
        "event {id} of type {event_type} has version {found}, and this program reads version {known} but not version \
         {found}; add a type for version {found}, and name it with `from` in `#[event(…)]` of the version after it"
    )]
    OlderVersion {
        /// The event's id.
        id: String,
        /// The event's type.
        event_type: String,
        /// Its version.
        found: u32,
        /// The version of the type that does not know how to read it.
        known: u32,
    },
    /// The header `ce-typeversion` is no version.
    #[error(
        "the version of event {id} of type {event_type} cannot be read: its header ce-typeversion must be a whole \
         number from 1; correct the producer"
    )]
    Version {
        /// The event's id.
        id: String,
        /// The event's type.
        event_type: String,
    },
    /// An event of an older version could not be made one of a newer version.
    #[error(
        "event {id} of type {event_type} has version {from} and cannot be made version {to}: {problem}"
    )]
    Upcast {
        /// The event's id.
        id: String,
        /// The event's type.
        event_type: String,
        /// The older version.
        from: u32,
        /// The newer version.
        to: u32,
        /// What the conversion said.
        problem: String,
    },
    /// The payload is not the JSON of the type asked for.
    #[error("the payload of event {id} ({event_type}) is not what its type says: {problem}")]
    Payload {
        /// The event's id.
        id: String,
        /// The event's type.
        event_type: String,
        /// What serde_json said, without what it quoted of the payload.
        problem: String,
    },
}

/// The first characters of a refused text, so that an error never carries the whole text.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(60).collect()
}

/// What serde_json says, without the values that it quotes: errors are logged, and payloads must not be.
pub fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = text.rfind(" at line ").map_or("", |at| &text[at..]);
    let what = text.strip_suffix(place).unwrap_or(&text);
    let quotes = ["invalid type: ", "invalid value: ", "unknown variant ", "unknown field "]
        .into_iter()
        .find(|start| what.starts_with(start));
    let shown = match quotes {
        Some(start) => {
            // The last match is serde's own. An earlier one may be part of a quoted value.
            let expected = what.rfind(", expected ").map_or("", |at| &what[at..]);
            let kind = what[start.len()..].split([' ', '`']).next().unwrap_or_default();
            format!(
                "{}{}{expected}",
                start.trim_end(),
                if kind.is_empty() { String::new() } else { format!(" {kind}") }
            )
        }
        // These errors name only a field of the type, or a character of the syntax.
        None if error.is_syntax() || error.is_eof() => what.to_owned(),
        None if what.starts_with("missing field ") => what.to_owned(),
        None => "it does not fit".to_owned(),
    };
    format!("{shown}{place}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RawEvent;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Order {
        id: i64,
        state: State,
    }

    #[derive(Debug, serde::Deserialize)]
    enum State {
        Open,
    }

    #[test]
    fn an_error_ends_with_what_to_do() {
        let built = |event_type: &str, topic: &str| RawEvent::builder(event_type, topic);
        for (refused, remedy) in [
            (built("t", "a").id("").build(), "an id is 1 to 255 bytes without control characters"),
            (built("t", "a b").build(), "a leading \"$\", at most 255 bytes"),
            (built("", "a").build(), "it must be 1 to 255 bytes without control characters"),
            (built("t", "a").header("ce-id", "1").build(), "choose another name"),
            (built("t", "a").header("x", "1\n2").build(), "without white space around it"),
        ] {
            let text = refused.unwrap_err().to_string();
            assert!(text.ends_with(remedy), "{text}");
        }
    }

    #[test]
    fn what_a_payload_holds_is_left_out() {
        for (payload, said) in [
            (
                r#"{"id": "secret, expected x", "state": "Open"}"#,
                "invalid type: string, expected i64 at line 1 column 27",
            ),
            (
                r#"{"id": 77.5, "state": "Open"}"#,
                "invalid type: floating, expected i64 at line 1 column 11",
            ),
            (
                r#"{"id": 7, "state": "secret"}"#,
                "unknown variant, expected `Open` at line 1 column 27",
            ),
            (r#"{"secret": 7}"#, "unknown field, expected `id` or `state` at line 1 column 9"),
            (r#"{"id": 7}"#, "missing field `state` at line 1 column 9"),
            (r#"{"id": 7, "#, "EOF while parsing a value at line 1 column 10"),
            ("secret", "expected value at line 1 column 1"),
        ] {
            let error = serde_json::from_str::<Order>(payload).unwrap_err();
            assert_eq!(without_values(&error), said, "{payload}: {error}");
        }
        let error: serde_json::Error = serde::de::Error::custom("secret");
        assert_eq!(without_values(&error), "it does not fit");
    }
}
