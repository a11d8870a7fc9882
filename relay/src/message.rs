//! An outbox row as a message for the broker.

use std::collections::BTreeMap;

use async_nats::Subject;
use async_nats::header::{HeaderMap, HeaderName, IntoHeaderName};
use bytes::Bytes;
use pillarbox_event::{EventError, EventId, Partition, RawEvent, header};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::config::{RelayConfig, ShippingOrder};

/// JetStream stores at most this many bytes of headers with a message.
const MAX_HEADERS: usize = 65_535;

/// A message that is ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The row's position in the outbox.
    pub(crate) position: i64,
    /// The event's id, for logs and errors.
    pub(crate) event_id: Uuid,
    /// The ordering key.
    pub(crate) key: Option<String>,
    /// The topic. With several partitions, it contains the partition's number.
    pub(crate) subject: Subject,
    /// All headers, including `Nats-Msg-Id`.
    pub(crate) headers: HeaderMap,
    /// The payload.
    pub(crate) payload: Bytes,
    wire_size: usize,
}

impl Message {
    /// The bytes that count towards the server's `max_payload`: headers and payload. Computed when the headers were
    /// set.
    pub(crate) fn wire_size(&self) -> usize {
        self.wire_size
    }

    /// Why the message is too large for a server with this `max_payload`, if it is.
    pub(crate) fn too_large(&self, max_payload: usize) -> Option<String> {
        let size = self.wire_size();
        let headers = size - self.payload.len();
        if size > max_payload {
            return Some(format!(
                "headers and payload are {size} bytes, and the server's max_payload is {max_payload}"
            ));
        }
        (headers > MAX_HEADERS).then(|| {
            format!("the headers are {headers} bytes, and JetStream stores at most {MAX_HEADERS}")
        })
    }
}

/// The header names that most messages have, prepared once, so that they are not checked and copied for each message.
static NAMES: [(&str, HeaderName); 14] = [
    known(header::NATS_MSG_ID),
    known(header::SPEC_VERSION),
    known(header::ID),
    known(header::TYPE),
    known(header::PARTITION_KEY),
    known(header::DATA_CONTENT_TYPE),
    known(header::CONTENT_TYPE),
    known(header::SOURCE),
    known(header::TIME),
    known(header::CE_TRACEPARENT),
    known(header::TRACEPARENT),
    known(header::CORRELATION_ID),
    known(header::PARTITION),
    known(header::OUTBOX),
];

const fn known(name: &'static str) -> (&'static str, HeaderName) {
    (name, HeaderName::from_static(name))
}

fn header_name(name: &str) -> HeaderName {
    match NAMES.iter().find(|(known, _)| *known == name) {
        Some((_, ready)) => ready.clone(),
        None => name.into_header_name(),
    }
}

/// A row of the outbox.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) position: i64,
    pub(crate) event_id: Uuid,
    pub(crate) event_type: String,
    pub(crate) topic: String,
    pub(crate) key: Option<String>,
    /// The column `headers` as JSON text. `None`: an empty object.
    pub(crate) headers: Option<String>,
    pub(crate) payload: Bytes,
    pub(crate) created_at: OffsetDateTime,
}

/// The settings that turn rows into messages.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    /// The `ce-source` of events that name no source.
    pub(crate) source: String,
    /// How many partitions there are. 1: topics contain no partition.
    pub(crate) partitions: u32,
    /// Whether the events of a key wait behind an event of that key that cannot be sent.
    pub(crate) keys_wait: bool,
    /// The headers that every message with a time has, as a template. Copying it and setting what differs takes two
    /// thirds of the time of setting all headers.
    usual: HeaderMap,
    /// The headers of the template that hardly ever differ.
    constant: Vec<(String, String)>,
}

impl Form {
    pub(crate) fn of(config: &RelayConfig) -> Self {
        let keys_wait = config.order == ShippingOrder::Strict;
        Self { keys_wait, ..Self::new(config.source.clone(), config.partitions) }
    }

    pub(crate) fn new(source: String, partitions: u32) -> Self {
        let mut usual = HeaderMap::new();
        let mut constant = Vec::new();
        if let Ok(example) = RawEvent::builder("t", "t").build().map(RawEvent::shipped) {
            let defaults = [(header::SOURCE, Some(source.as_str())), (header::TIME, Some(""))];
            usual.insert(header_name(header::NATS_MSG_ID), "");
            for (name, value) in example.wire_headers_or(defaults) {
                usual.insert(header_name(name), value.as_ref());
                if ![header::ID, header::TYPE, header::TIME].contains(&name) {
                    constant.push((name.to_owned(), value.into_owned()));
                }
            }
        }
        Self { source, partitions, keys_wait: false, usual, constant }
    }

    /// The partition of an event: that of its key, or of its id if it has no key.
    fn partition(&self, event: &RawEvent) -> Option<Partition> {
        let key = event.key().unwrap_or(event.id().as_str());
        (self.partitions > 1).then(|| Partition::of_key(key, self.partitions))
    }
}

/// Why a row cannot be sent as an event, whatever the broker's state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    #[error("its headers are not a JSON object of strings")]
    Headers,
    #[error(transparent)]
    Event(#[from] EventError),
}

impl Row {
    /// About how many bytes the row takes in memory, as a row or as a message.
    pub(crate) fn size(&self) -> usize {
        /// For the headers that the relay adds, and for the structures around them.
        const MESSAGE: usize = 1024;
        let texts =
            [Some(&self.event_type), Some(&self.topic), self.key.as_ref(), self.headers.as_ref()];
        MESSAGE + self.payload.len() + texts.into_iter().flatten().map(String::len).sum::<usize>()
    }

    /// The message of a dead letter that is retried. The broker may have stored its id before, so each attempt has its
    /// own message id. If the same attempt is sent again, its message id is the same.
    pub(crate) fn into_retry(self, form: &Form, attempts: i32) -> Result<Message, RowError> {
        match attempts {
            0 => self.into_message(form),
            _ => self.into_repeat(form, &attempts.to_string()),
        }
    }

    /// The message of a row that is replayed. To the broker it is a new message, but within one generation it is the
    /// same message.
    pub(crate) fn into_repeat(self, form: &Form, generation: &str) -> Result<Message, RowError> {
        let id = format!("{}#{generation}", self.event_id);
        self.into_message_of(form, Some(&id))
    }

    /// The message of this row.
    pub(crate) fn into_message(self, form: &Form) -> Result<Message, RowError> {
        self.into_message_of(form, None)
    }

    /// The message of this row with this message id. `None`: the event's id.
    fn into_message_of(self, form: &Form, id: Option<&str>) -> Result<Message, RowError> {
        let attributes: BTreeMap<String, String> = match &self.headers {
            Some(text) => serde_json::from_str(text).map_err(|_| RowError::Headers)?,
            None => BTreeMap::new(),
        };
        // `None` for a year that RFC 3339 cannot express.
        let time = self.created_at.format(&Rfc3339).ok();
        let event = RawEvent::from_parts(
            EventId::from(self.event_id),
            self.event_type,
            self.topic,
            self.key,
            attributes,
            self.payload,
        )?
        .shipped();
        let (mut headers, constant) = match time {
            Some(_) => (form.usual.clone(), form.constant.as_slice()),
            None => (HeaderMap::new(), [].as_slice()),
        };
        let mut wire_size = "NATS/1.0\r\n\r\n".len() + event.payload().len();
        let mut insert = |name: &str, value: &str| {
            wire_size += name.len() + ": \r\n".len() + value.len();
            if !constant.iter().any(|(same, usual)| same == name && usual == value) {
                headers.insert(header_name(name), value);
            }
        };
        insert(header::NATS_MSG_ID, id.unwrap_or(event.id().as_str()));
        let defaults =
            [(header::SOURCE, Some(form.source.as_str())), (header::TIME, time.as_deref())];
        let partition = form.partition(&event);
        if let Some(partition) = &partition {
            insert(header::PARTITION, &partition.to_string());
        }
        for (name, value) in event.wire_headers_or(defaults) {
            insert(name, &value);
        }
        let (_, _, topic, key, _, payload) = event.into_parts();
        let subject = match partition {
            Some(partition) => partition.subject(&topic).into(),
            None => topic.into(),
        };
        Ok(Message {
            position: self.position,
            event_id: self.event_id,
            key,
            subject,
            headers,
            payload,
            wire_size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            position: 7,
            event_id: Uuid::nil(),
            event_type: "order.placed".into(),
            topic: "orders.placed".into(),
            key: Some("42".into()),
            headers: None,
            payload: Bytes::from_static(b"{}"),
            created_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn shop(partitions: u32) -> Form {
        Form::new("/shop".into(), partitions)
    }

    #[test]
    fn a_bare_row_becomes_a_complete_cloudevent() {
        let message = row().into_message(&shop(1)).unwrap();
        let header = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned());
        let id = Uuid::nil().to_string();
        for (name, value) in [
            ("Nats-Msg-Id", id.as_str()),
            ("ce-id", id.as_str()),
            ("ce-type", "order.placed"),
            ("ce-source", "/shop"),
            ("ce-time", "1970-01-01T00:00:00Z"),
            ("ce-partitionkey", "42"),
            ("ce-specversion", "1.0"),
            ("pillarbox-outbox", "1"),
            ("content-type", "application/json"),
        ] {
            assert_eq!(header(name).as_deref(), Some(value), "{name}");
        }
        assert_eq!((message.position, message.subject.as_str()), (7, "orders.placed"));
    }

    #[test]
    fn with_partitions_the_events_of_a_key_get_its_number_and_those_without_one_spread() {
        let sent = |row: Row, partitions| {
            let message = row.into_message(&shop(partitions)).unwrap();
            let header = message.headers.get("pillarbox-partition").map(ToString::to_string);
            (message.subject.to_string(), header)
        };
        for topic in ["orders.placed", "orders.cancelled"] {
            let expected = topic.replace("orders", "orders.3");
            let of_42 = sent(Row { topic: topic.into(), ..row() }, 8);
            assert_eq!(of_42, (expected, Some("3/8".into())), "FNV-1a of 42, modulo 8");
        }
        for off in [0, 1] {
            assert_eq!(sent(row(), off), ("orders.placed".into(), None));
        }
        let of_ids = |_| sent(Row { key: None, event_id: Uuid::now_v7(), ..row() }, 8).0;
        let subjects: std::collections::BTreeSet<_> = (0..200).map(of_ids).collect();
        assert_eq!(subjects.len(), 8);
    }

    #[test]
    fn what_the_writer_says_wins_over_the_defaults() {
        let headers = r#"{"ce-source":"/else","ce-time":"2026-01-02T03:04:05Z","x-tenant":"acme"}"#;
        let message =
            Row { headers: Some(headers.into()), ..row() }.into_message(&shop(1)).unwrap();
        for (name, value) in
            [("ce-source", "/else"), ("ce-time", "2026-01-02T03:04:05Z"), ("x-tenant", "acme")]
        {
            assert_eq!(message.headers.get(name).unwrap().as_str(), value);
        }
        let headers = r#"{"CE-Source":"/else"}"#;
        let message =
            Row { headers: Some(headers.into()), ..row() }.into_message(&shop(1)).unwrap();
        assert_eq!(message.headers.get("ce-source").unwrap().as_str(), "/else");
    }

    #[test]
    fn a_row_that_is_no_event_says_why() {
        let refused = |row: Row| row.into_message(&shop(1)).unwrap_err().to_string();
        assert!(
            refused(Row { headers: Some(r#"{"a":1}"#.into()), ..row() })
                .contains("object of strings")
        );
        assert!(
            refused(Row { headers: Some(r#"{"a":"b\nc"}"#.into()), ..row() })
                .contains("line break")
        );
        assert!(refused(Row { topic: "a b".into(), ..row() }).contains("white space"));
    }

    #[test]
    fn a_message_has_its_events_headers_and_no_others() {
        let year_before_christ = OffsetDateTime::UNIX_EPOCH.replace_year(-1).unwrap();
        let own = r#"{"ce-source":"/else","content-type":"text/plain","x-tenant":"acme"}"#;
        for created_at in [OffsetDateTime::UNIX_EPOCH, year_before_christ] {
            for headers in [None, Some(own.to_owned())] {
                let message = Row { headers, created_at, ..row() }.into_message(&shop(2)).unwrap();
                let sent: BTreeMap<_, _> = (message.headers.iter())
                    .map(|(name, values)| (name.to_string(), values[0].to_string()))
                    .collect();
                let wire = sent.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                let event = RawEvent::from_wire("a", wire, Bytes::new()).unwrap();
                let time = created_at.format(&Rfc3339).ok();
                let mut expected: BTreeMap<_, _> = (event.wire_headers())
                    .map(|(name, value)| (name.to_owned(), value.into_owned()))
                    .collect();
                expected.insert(header::NATS_MSG_ID.into(), Uuid::nil().to_string());
                expected.insert(header::PARTITION.into(), "1/2".into());
                assert_eq!(sent, expected);
                assert_eq!(sent.get(header::TIME), time.as_ref());
            }
        }
    }

    #[test]
    fn the_wire_size_is_what_the_server_counts() {
        let message = row().into_message(&shop(1)).unwrap();
        let text: usize = message
            .headers
            .iter()
            .map(|(name, values)| format!("{name}: {}\r\n", values[0].as_str()).len())
            .sum();
        assert_eq!(message.wire_size(), "NATS/1.0\r\n".len() + text + "\r\n".len() + 2);
    }
}
