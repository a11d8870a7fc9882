//! Writing and reading the CloudEvents headers of a message.
//!
//! CloudEvents 1.0, NATS protocol binding 1.0, binary mode: attributes are headers with the prefix `ce-`. Their
//! values are percent-encoded where they hold a space, a double quote, a percent sign or anything outside visible
//! ASCII. The payload is sent unchanged. `content-type` and `traceparent` are also sent under their plain names,
//! for readers that do not know CloudEvents. Application headers are sent unchanged.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use percent_encoding::percent_decode_str;

use crate::header::encoded;
use crate::identity::is_uuid;
use crate::partition::topic_of;
use crate::raw::Origin;
use crate::{DecodeError, EventId, Identity, RawEvent, header, topic};

/// The value of [`header::OUTBOX`].
const SHIPPED: &str = "1";

impl RawEvent {
    /// The headers to send, each name once. `Nats-Msg-Id` is not among them: the sender decides which messages the
    /// broker should treat as repeats.
    pub fn wire_headers(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        self.wire_headers_or([])
    }

    /// The same headers, and these defaults for headers that the event does not set.
    pub fn wire_headers_or<'a, const N: usize>(
        &'a self,
        defaults: [(&'a str, Option<&'a str>); N],
    ) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> {
        let content_type = self.content_type();
        let own = [
            (header::SPEC_VERSION, Some("1.0")),
            (header::ID, Some(self.id.as_str())),
            (header::TYPE, Some(self.event_type.as_str())),
            (header::PARTITION_KEY, self.key.as_deref()),
            (header::OUTBOX, self.is_shipped().then_some(SHIPPED)),
            (header::DATA_CONTENT_TYPE, Some(content_type)),
            (header::CONTENT_TYPE, Some(content_type)),
            (header::CE_TRACEPARENT, self.traceparent()),
        ];
        let own = own.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let rest = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).filter(
            |(name, _)| {
                !matches!(
                    *name,
                    header::CONTENT_TYPE | header::DATA_CONTENT_TYPE | header::CE_TRACEPARENT
                )
            },
        );
        let defaults = defaults
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .filter(|(name, _)| !self.headers.contains_key(*name));
        own.chain(rest).chain(defaults).map(|(name, value)| {
            let value = if name.starts_with("ce-") { encoded(value) } else { Cow::Borrowed(value) };
            (name, value)
        })
    }

    /// Reads a message.
    ///
    /// Upper and lower case of names make no difference. If a name comes twice, the first one counts; if it is written
    /// in two ways, the one that sorts first counts, because clients keep the order only within a name. For the
    /// [identity](crate::identity), all of them count. Headers that start with `Nats-` belong to the broker and are
    /// left out. If a header names a [partition](crate::partition), its number is taken out of the subject, and the
    /// rest is the topic.
    ///
    /// # Errors
    /// [`DecodeError`] if the message has no `ce-id` or `ce-type`, names another version, or breaks a rule for events.
    pub fn from_wire<'a>(
        subject: &str,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        payload: Bytes,
    ) -> Result<Self, DecodeError> {
        let mut all = BTreeMap::new();
        let (mut sources, mut ids) = (Vec::new(), Vec::new());
        let mut headers: Vec<_> = headers.into_iter().collect();
        headers.sort_by_key(|(name, _)| *name);
        for (name, value) in headers {
            let name = header::canonical(name);
            if header::is_the_brokers(&name) {
                continue;
            }
            header::validate_name(&name)?;
            match &*name {
                header::SOURCE => sources.push(value),
                header::ID => ids.push(value),
                _ => {}
            }
            let value = if name.starts_with("ce-") {
                percent_decode_str(value).decode_utf8_lossy()
            } else {
                Cow::Borrowed(value)
            };
            header::validate_value(&name, &value)?;
            all.entry(name.into_owned()).or_insert_with(|| value.into_owned());
        }
        if let Some(version) = all.remove(header::SPEC_VERSION)
            && version != "1.0"
        {
            return Err(DecodeError::SpecVersion { version });
        }
        let missing = |name| DecodeError::MissingHeader { name };
        let id = EventId::parse(all.remove(header::ID).ok_or(missing(header::ID))?)?;
        let event_type = all.remove(header::TYPE).ok_or(missing(header::TYPE))?;
        header::validate_attribute(header::TYPE, &event_type)?;
        let key = all.remove(header::PARTITION_KEY).filter(|key| !key.is_empty());
        if let Some(key) = &key {
            header::validate_attribute(header::PARTITION_KEY, key)?;
        }
        let shipped = all.remove(header::OUTBOX).is_some_and(|value| value == SHIPPED);
        let topic = topic_of(subject, all.remove(header::PARTITION).as_deref());
        topic::validate(&topic)?;
        // White space around the value of a plain header is stripped on the way. Around the value of an attribute it is
        // not.
        for (attribute, plain) in [
            (header::DATA_CONTENT_TYPE, header::CONTENT_TYPE),
            (header::CE_TRACEPARENT, header::TRACEPARENT),
        ] {
            if let Some(value) = all.remove(attribute) {
                all.entry(plain.to_owned()).or_insert_with(|| value.trim().to_owned());
            }
        }
        if all.get(header::CONTENT_TYPE).is_some_and(|content_type| content_type == header::JSON) {
            // It is the default, which is not kept.
            all.remove(header::CONTENT_TYPE);
        }
        let source = all.get(header::SOURCE).map(String::as_str);
        let origin = if shipped && ids == [id.as_str()] && is_uuid(id.as_str()) {
            Origin::Outbox
        } else if ids == [&*encoded(id.as_str())] && sources == Vec::from_iter(source.map(encoded))
        {
            Origin::Any
        } else {
            Origin::Stored(Identity::as_sent(sources, ids))
        };
        let topic = topic.into_owned();
        Ok(Self { id, event_type, topic, key, headers: all, payload, origin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(event: &RawEvent) -> RawEvent {
        let headers: Vec<(String, String)> =
            event.wire_headers().map(|(n, v)| (n.to_owned(), v.into_owned())).collect();
        for (name, value) in &headers {
            assert!(!value.contains(['\r', '\n']), "{name}: {value:?}");
            assert_eq!(headers.iter().filter(|(n, _)| n == name).count(), 1, "{name} is sent once");
        }
        RawEvent::from_wire(
            event.topic(),
            headers.iter().map(|(n, v)| (n.as_str(), v.as_str())),
            event.payload().clone(),
        )
        .unwrap()
    }

    #[test]
    fn an_event_comes_back_as_it_was_sent() {
        let event = RawEvent::builder("order.placed", "orders.placed")
            .key("Größe 100% \"neu\"")
            .source("/shop/orders")
            .subject("Bestellung 42")
            .content_type("application/octet-stream")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .header("x-tenant", "acme & söhne")
            .payload(vec![0_u8, 159, 146, 150])
            .build()
            .unwrap();
        assert_eq!(there_and_back(&event), event);
    }

    #[test]
    fn names_of_the_library_mean_the_same_however_they_are_written() {
        let written = RawEvent::builder("t", "a")
            .header("Content-Type", "text/plain")
            .header("CE-Source", "/100% \"shop\"")
            .header("ce-traceparent", "00-1-2-01")
            .build()
            .unwrap();
        let id = written.id().clone();
        let stored = [
            ("CE-Source", "/100% \"shop\""),
            ("ce-datacontenttype", "text/plain"),
            ("traceparent", "00-1-2-01"),
        ];
        let stored = stored.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let stored =
            RawEvent::from_parts(id, "t".into(), "a".into(), None, stored, Bytes::new()).unwrap();
        assert_eq!(stored, written);
        assert_eq!(there_and_back(&written), written);
        assert_eq!(written.source(), Some("/100% \"shop\""));
        assert_eq!(written.content_type(), "text/plain");
        assert_eq!(written.traceparent(), Some("00-1-2-01"));
        let json = written.with_header("ce-datacontenttype", "application/json").unwrap();
        assert_eq!(there_and_back(&json), json);
    }

    #[test]
    fn the_headers_are_those_of_the_cloudevents_binding() {
        let event =
            RawEvent::builder("order.placed", "orders.placed").id("42").key("a b").build().unwrap();
        let headers: BTreeMap<_, _> = event.wire_headers().collect();
        let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_ref())).collect();
        assert_eq!(
            headers,
            [
                ("ce-datacontenttype", "application/json"),
                ("ce-id", "42"),
                ("ce-partitionkey", "a%20b"),
                ("ce-specversion", "1.0"),
                ("ce-type", "order.placed"),
                ("content-type", "application/json"),
            ]
        );
    }

    #[test]
    fn a_default_is_sent_where_the_event_does_not_say_otherwise() {
        let event = RawEvent::builder("t", "a").source("/shop").build().unwrap();
        let defaults = [
            (header::SOURCE, Some("/else")),
            (header::SUBJECT, Some("order 42")),
            (header::TIME, None),
        ];
        let headers: Vec<_> = event.wire_headers_or(defaults).collect();
        let of = |name: &str| -> Vec<&str> {
            headers.iter().filter(|(n, _)| *n == name).map(|(_, v)| v.as_ref()).collect()
        };
        assert_eq!(of(header::SOURCE), ["/shop"]);
        assert_eq!(of(header::SUBJECT), ["order%2042"], "encoded as the event's own");
        assert!(of(header::TIME).is_empty());
    }

    #[test]
    fn a_message_of_another_producer_is_read_whatever_the_case_of_its_names() {
        let event = RawEvent::from_wire(
            "a.b",
            [
                ("CE-Id", "x/1"),
                ("ce-Type", "t"),
                ("ce-specversion", "1.0"),
                ("Content-Type", "text/plain"),
                ("Nats-Msg-Id", "x/1"),
                ("X-Mine", "kept"),
            ],
            Bytes::new(),
        )
        .unwrap();
        assert_eq!(event.id().as_str(), "x/1");
        assert_eq!(event.content_type(), "text/plain");
        assert_eq!(event.header("X-Mine"), Some("kept"));
        assert_eq!(event.headers().len(), 2);
    }

    #[test]
    fn a_partition_that_a_header_names_is_not_part_of_the_topic() {
        let topic = |subject: &str, partition: &'static str| {
            let headers = [("ce-id", "1"), ("ce-type", "t"), ("Pillarbox-Partition", partition)];
            let event = RawEvent::from_wire(subject, headers, Bytes::new()).unwrap();
            assert!(event.headers().is_empty());
            event.topic().to_owned()
        };
        assert_eq!(topic("orders.3.placed", "3/8"), "orders.placed");
        assert_eq!(topic("orders.3", "3/8"), "orders");
        assert_eq!(topic("orders.3.placed", "4/8"), "orders.3.placed", "it is not there");
        assert_eq!(topic("orders.3.placed", "three"), "orders.3.placed", "it is none");
    }

    #[test]
    fn an_attribute_that_goes_by_a_plain_name_has_no_white_space_around_it() {
        let headers = [("ce-id", "1"), ("ce-type", "t"), ("ce-datacontenttype", "%20text/plain ")];
        let event = RawEvent::from_wire("a", headers, Bytes::new()).unwrap();
        assert_eq!(event.content_type(), "text/plain");
        assert_eq!(there_and_back(&event), event);
    }

    #[test]
    fn what_is_not_an_event_is_refused_with_its_reason() {
        let read = |headers: &[(&'static str, &'static str)]| {
            RawEvent::from_wire("a", headers.iter().copied(), Bytes::new()).unwrap_err().to_string()
        };
        assert!(read(&[]).contains("no ce-id header"));
        assert!(read(&[("ce-id", "1")]).contains("no ce-type header"));
        assert!(read(&[("ce-id", ""), ("ce-type", "t")]).contains("it is empty"));
        assert!(
            read(&[("ce-id", "1"), ("ce-type", "t"), ("ce-specversion", "0.3")])
                .contains("must be 1.0")
        );
        assert!(
            read(&[("ce-id", "a%0Ab"), ("ce-type", "t")])
                .contains("ce-id is refused: it holds a line break")
        );
        assert!(read(&[("ce-id", "1"), ("ce-type", "t"), ("x:y", "z")]).contains("a colon"));
    }
}
