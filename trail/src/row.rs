//! A message as a row of the trail.

use bytes::Bytes;
use pillarbox_event::{RawEvent, header};
use pillarbox_relay::broker::MessageHead;
use time::OffsetDateTime;

/// The longest text of a row, in bytes. An index of Postgres takes no text of more than 2,700 bytes.
const LONGEST: usize = 1_024;

/// A message as a row of the trail. No text is longer than [`LONGEST`], and none holds a zero byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) stored: OffsetDateTime,
    pub(crate) sequence: u64,
    pub(crate) event: Option<Event>,
    pub(crate) topic: String,
    pub(crate) size: u64,
    /// Why it is no event, or what of it could not be kept.
    pub(crate) problem: Option<String>,
}

/// What a message says of itself, if it is an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: String,
    /// The inbox's name for it, if that is another text than the id.
    pub(crate) identity: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) event_type: String,
    pub(crate) key: Option<String>,
    pub(crate) correlation: Option<String>,
    pub(crate) causation: Option<String>,
    pub(crate) time: Option<OffsetDateTime>,
}

impl Row {
    pub(crate) fn of(head: MessageHead) -> Self {
        let MessageHead { sequence, stored, subject, headers, size, fault, .. } = head;
        let row = |event, topic: &str, problem: Option<String>| Self {
            stored,
            sequence,
            event,
            topic: cut(topic),
            size,
            problem: problem.map(|problem| cut(&problem)),
        };
        if let Some(fault) = fault {
            return row(None, &subject, Some(format!("its headers cannot be parsed: {fault}")));
        }
        let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        match RawEvent::from_wire(&subject, pairs, Bytes::new()) {
            Ok(event) => match Event::of(&event) {
                Ok((kept, left_out)) => row(Some(kept), event.topic(), left_out),
                Err(problem) => row(None, &subject, Some(problem)),
            },
            Err(error) => row(None, &subject, Some(pillarbox_store::full_text(&error))),
        }
    }
}

impl Event {
    /// The event's attributes, and what of them could not be kept. The id and the type must be kept.
    fn of(event: &RawEvent) -> Result<(Self, Option<String>), String> {
        let id = event.id().as_str();
        if !fits(id) || !fits(event.event_type()) {
            return Err("its id or its type is too long to be followed".to_owned());
        }
        let identity = event.identity();
        let mut left_out = Vec::new();
        let mut kept = |name: &'static str, value: Option<&str>| match value {
            Some(value) if fits(value) => Some(value.to_owned()),
            Some(_) => {
                left_out.push(name);
                None
            }
            None => None,
        };
        let kept = Self {
            id: id.to_owned(),
            identity: Some(identity.as_str()).filter(|text| *text != id).map(str::to_owned),
            source: kept(header::SOURCE, event.source()),
            event_type: event.event_type().to_owned(),
            key: kept(header::PARTITION_KEY, event.key()),
            correlation: kept(header::CORRELATION_ID, event.correlation_id()),
            causation: kept(header::CAUSATION_ID, event.causation_id()),
            time: event.time().filter(|time| (1..=9_999).contains(&time.year())),
        };
        let left_out = (!left_out.is_empty())
            .then(|| format!("{} is too long to be followed", left_out.join(" and ")));
        Ok((kept, left_out))
    }
}

/// Whether a text can be kept whole: a part of it would be another text.
fn fits(text: &str) -> bool {
    text.len() <= LONGEST && !text.contains('\0')
}

/// A text that is only shown. It is cut, and zero bytes are left out.
fn cut(text: &str) -> String {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&str, &str)]) -> MessageHead {
        MessageHead {
            sequence: 7,
            stored: OffsetDateTime::UNIX_EPOCH,
            subject: "orders.3.placed".into(),
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            size: 9,
            fault: None,
        }
    }

    #[test]
    fn an_event_is_kept_with_its_attributes_and_nothing_else() {
        let row = Row::of(head(&[
            ("ce-id", "1"),
            ("ce-type", "order.placed"),
            ("ce-source", "/shop"),
            ("ce-partitionkey", "a%20b"),
            ("ce-correlationid", "c"),
            ("ce-causationid", "0"),
            ("ce-time", "2026-01-02T03:04:05Z"),
            ("Pillarbox-Partition", "3/8"),
            ("x-secret", "hunter2"),
        ]));
        let event = row.event.clone().unwrap();
        assert_eq!(
            (row.topic.as_str(), row.size, row.problem.as_deref()),
            ("orders.placed", 9, None)
        );
        assert_eq!((event.id.as_str(), event.event_type.as_str()), ("1", "order.placed"));
        assert_eq!(event.key.as_deref(), Some("a b"));
        assert_eq!(event.correlation.as_deref(), Some("c"));
        assert_eq!(event.causation.as_deref(), Some("0"));
        assert_eq!(event.time.unwrap().year(), 2026);
        assert!(event.identity.clone().unwrap().starts_with('~'), "it has a source of its own");
        assert!(!format!("{row:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_no_event_is_kept_as_a_message_with_the_reason() {
        let row = Row::of(head(&[("ce-id", "1")]));
        assert!(row.event.is_none() && row.problem.unwrap().contains("ce-type"));
        let row = Row::of(head(&[]));
        assert!(row.event.is_none() && row.problem.unwrap().contains("ce-id"));
        let row = Row::of(MessageHead { fault: Some("its headers are not UTF-8"), ..head(&[]) });
        assert!(row.problem.unwrap().contains("cannot be parsed"));
    }

    #[test]
    fn a_text_that_is_too_long_is_left_out_and_not_cut() {
        let long = "x".repeat(1_025);
        let row = Row::of(head(&[("ce-id", "1"), ("ce-type", "t"), ("ce-correlationid", &long)]));
        assert_eq!(row.event.unwrap().correlation, None);
        assert_eq!(row.problem.as_deref(), Some("ce-correlationid is too long to be followed"));
        let row = Row::of(head(&[("ce-id", "1"), ("ce-type", &long)]));
        assert!(row.event.is_none() && row.problem.is_some());
        let subject = format!("a.{}", "ü".repeat(2_000));
        let row = Row::of(MessageHead { subject, ..head(&[]) });
        assert!(row.topic.len() <= LONGEST && row.topic.starts_with("a.ü"));
    }
}
