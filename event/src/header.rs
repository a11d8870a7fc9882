//! The names of headers, and which names and values are allowed.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::error::{EventError, excerpt};

/// The CloudEvents version; always `1.0`.
pub const SPEC_VERSION: &str = "ce-specversion";
/// The event's id.
pub const ID: &str = "ce-id";
/// The event's type.
pub const TYPE: &str = "ce-type";
/// The producer of the event: a URI reference that names the service.
pub const SOURCE: &str = "ce-source";
/// What the event is about, within its source.
pub const SUBJECT: &str = "ce-subject";
/// When it happened, in RFC 3339 form.
pub const TIME: &str = "ce-time";
/// The payload's media type; also sent as `content-type`.
pub const DATA_CONTENT_TYPE: &str = "ce-datacontenttype";
/// Where the payload's schema is.
pub const DATA_SCHEMA: &str = "ce-dataschema";
/// The ordering key.
pub const PARTITION_KEY: &str = "ce-partitionkey";
/// The version of the type: a whole number from 1. Without this header, an event has version 1. See
/// [`Event::VERSION`](crate::Event::VERSION).
pub const TYPE_VERSION: &str = "ce-typeversion";
/// The id that all events share that go back to the same first event.
pub const CORRELATION_ID: &str = "ce-correlationid";
/// The id of the event whose handling produced this one.
pub const CAUSATION_ID: &str = "ce-causationid";
/// The trace context as a CloudEvents extension; also sent as [`TRACEPARENT`].
pub const CE_TRACEPARENT: &str = "ce-traceparent";
/// The trace state as a CloudEvents extension.
pub const CE_TRACESTATE: &str = "ce-tracestate";
/// The trace context (W3C Trace Context), under the name that tracing libraries look for.
pub const TRACEPARENT: &str = "traceparent";
/// The payload's media type.
pub const CONTENT_TYPE: &str = "content-type";
/// The partition in the message's subject, such as `3/8`: see [`partition`](crate::partition). The relay sets it.
pub const PARTITION: &str = "pillarbox-partition";
/// `1` on every event that a relay ships from an outbox. Then the id alone, a UUID, is the event's
/// [identity](crate::identity), whatever `ce-source` says. The relay sets it.
pub const OUTBOX: &str = "pillarbox-outbox";
/// JetStream's message id. The relay sets it.
pub const NATS_MSG_ID: &str = "Nats-Msg-Id";

/// The media type of a payload if none is set.
pub const JSON: &str = "application/json";

/// The longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 8 * 1024;

/// The attributes that are fields of the event, so that no header may set them.
const OWN_PLACE: [&str; 6] = [SPEC_VERSION, ID, TYPE, PARTITION_KEY, PARTITION, OUTBOX];

/// Checks a header that an application or a producer wants to set.
///
/// # Errors
/// [`EventError::HeaderName`] if the name is empty, is not made of visible ASCII without a colon, starts with `Nats-`
/// (those headers control the server), or names an attribute that the event itself sets (`ce-id`, `ce-type`,
/// `ce-partitionkey`, `ce-specversion`, `pillarbox-partition`, `pillarbox-outbox`). [`EventError::HeaderValue`] as for
/// [`validate_value`].
pub fn validate(name: &str, value: &str) -> Result<(), EventError> {
    validate_name(name)?;
    let problem = if is_the_brokers(name) {
        "headers that start with \"Nats-\" control the server"
    } else if OWN_PLACE.iter().any(|own| own.eq_ignore_ascii_case(name)) {
        "the event itself sets this attribute"
    } else {
        return validate_value(name, value);
    };
    Err(EventError::HeaderName { name: excerpt(name), problem })
}

/// Checks that the protocol allows a name (ADR-4 of NATS): visible ASCII without a colon. It must not be too long
/// either.
pub(crate) fn validate_name(name: &str) -> Result<(), EventError> {
    let problem = if name.is_empty() {
        "it is empty"
    } else if name.len() > 255 {
        "it is longer than 255 bytes"
    } else if !name.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
        "it holds something other than visible ASCII, or a colon"
    } else {
        return Ok(());
    };
    Err(EventError::HeaderName { name: excerpt(name), problem })
}

/// Whether the broker reads or writes this header.
pub(crate) fn is_the_brokers(name: &str) -> bool {
    name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"))
}

/// The name in lower case if this library knows it, and unchanged otherwise.
pub(crate) fn canonical(name: &str) -> Cow<'_, str> {
    let known = name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("ce-"))
        || name.eq_ignore_ascii_case(CONTENT_TYPE)
        || name.eq_ignore_ascii_case(TRACEPARENT)
        || name.eq_ignore_ascii_case(PARTITION)
        || name.eq_ignore_ascii_case(OUTBOX);
    if known && name.bytes().any(|b| b.is_ascii_uppercase()) {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    }
}

/// The name under which an event keeps a header: the canonical one. The media type and the trace context are sent under
/// two names, and kept under the plain one.
pub(crate) fn kept_as(name: &str) -> Cow<'_, str> {
    match canonical(name) {
        name if name == DATA_CONTENT_TYPE => CONTENT_TYPE.into(),
        name if name == CE_TRACEPARENT => TRACEPARENT.into(),
        name => name,
    }
}

/// Checks a header's value.
///
/// # Errors
/// [`EventError::HeaderValue`] if it holds a line break or another control character, or is longer than
/// 8 KiB.
pub fn validate_value(name: &str, value: &str) -> Result<(), EventError> {
    let problem = if value.contains(['\r', '\n']) {
        "it holds a line break"
    } else if value.chars().any(char::is_control) {
        "it holds a control character"
    } else if value.len() > MAX_VALUE_BYTES {
        "it is longer than 8 KiB"
    } else if !name.starts_with("ce-") && value.trim() != value {
        "it starts or ends with white space, which the broker would strip"
    } else {
        return Ok(());
    };
    Err(EventError::HeaderValue { name: name.to_owned(), problem })
}

/// Checks the type or the key: 1 to 255 bytes without control characters.
pub(crate) fn validate_attribute(name: &str, value: &str) -> Result<(), EventError> {
    let problem = if value.is_empty() {
        "it is empty"
    } else if value.len() > 255 {
        "it is longer than 255 bytes"
    } else if value.chars().any(char::is_control) {
        "it holds a control character"
    } else {
        return Ok(());
    };
    Err(EventError::Attribute { name: name.to_owned(), value: excerpt(value), problem })
}

/// What is percent-encoded in an attribute's value, beside what is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// An attribute's value as it is sent.
pub(crate) fn encoded(value: &str) -> Cow<'_, str> {
    utf8_percent_encode(value, ENCODED).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_in_a_value_is_refused() {
        for value in ["a\r\nNats-Msg-Id: x", "a\nb", "a\rb"] {
            let error = validate("x-note", value).unwrap_err();
            assert!(
                matches!(&error, EventError::HeaderValue { problem: "it holds a line break", .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn names_that_are_not_the_applications_to_set_are_refused() {
        for name in [
            "",
            "a b",
            "a:b",
            "ä",
            "a\nb",
            "Nats-Msg-Id",
            "nats-expected-stream",
            "ce-id",
            "CE-Type",
        ] {
            assert!(matches!(validate(name, "v"), Err(EventError::HeaderName { .. })), "{name:?}");
        }
        validate("x-tenant", "acme").unwrap();
        validate("ce-source", "/orders").unwrap();
    }
}
