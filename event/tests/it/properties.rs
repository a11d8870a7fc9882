//! Properties of every event, whoever made it: it survives the wire, it stays within its limits, and nothing panics.

use std::error::Error;

use bytes::Bytes;
use pillarbox_event::{Event, EventId, RawEvent, header, topic};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed")]
struct Order {
    order: i64,
    lines: Vec<Line>,
    note: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    article: String,
    state: State,
}

#[derive(Debug, Serialize, Deserialize)]
enum State {
    Open,
    Sent { parcel: u8 },
}

fn properties() -> ProptestConfig {
    ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }
}

/// Any text: plain, with special characters, or with any characters at all, and now and then a long one.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-z0-9._-]{1,12}",
        3 => r#"[ -~]{0,20}"#,
        2 => r#"[ %"\\:;,.*>$\r\n\t\u{0}\u{7f}\u{85}\u{a0}\u{2028}äß🎉]{0,12}"#,
        2 => any::<String>(),
        1 => "%(0[0-9A-Fa-f]|[C-F][0-9]|0A|0D|00|zz|)",
        1 => ("[a-zä]", prop_oneof![Just(255), Just(256), Just(8 * 1024), Just(8 * 1024 + 1)])
            .prop_map(|(letter, times): (String, usize)| letter.repeat(times)),
    ]
}

/// Any name: one that the library knows, in upper or lower case, or any text.
fn name() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        header::SPEC_VERSION,
        header::ID,
        header::TYPE,
        header::SOURCE,
        header::SUBJECT,
        header::TIME,
        header::DATA_CONTENT_TYPE,
        header::DATA_SCHEMA,
        header::PARTITION_KEY,
        header::CORRELATION_ID,
        header::CAUSATION_ID,
        header::CE_TRACEPARENT,
        header::CE_TRACESTATE,
        header::TRACEPARENT,
        header::CONTENT_TYPE,
        header::PARTITION,
        header::NATS_MSG_ID,
        "x-tenant",
    ]);
    let cased = (known.clone(), any::<u64>()).prop_map(|(name, upper)| {
        name.char_indices()
            .map(|(at, c)| if upper >> at & 1 == 1 { c.to_ascii_uppercase() } else { c })
            .collect::<String>()
    });
    prop_oneof![4 => known.prop_map(str::to_owned), 2 => cased, 1 => text()]
}

/// Any media type, including the default.
fn header_value() -> impl Strategy<Value = String> {
    prop_oneof![4 => text(), 1 => Just("application/json".to_owned()), 1 => Just("1.0".to_owned()), 1 => "[0-9]/[0-9]"]
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    vec((name(), header_value()), 0..8)
}

/// A valid topic, or any text.
fn any_topic() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-z]{1,5}(\\.[a-zä0-9_-]{1,5}){0,3}", 1 => text()]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..64)
}

fn over_the_wire(event: &RawEvent) -> RawEvent {
    let headers: Vec<(String, String)> =
        event.wire_headers().map(|(name, value)| (name.to_owned(), value.into_owned())).collect();
    for (at, (name, value)) in headers.iter().enumerate() {
        // Text that would end the header or start another one.
        assert!(!value.contains(['\r', '\n']) && !name.contains([':', '\r', '\n']), "{headers:?}");
        // The server and the client strip white space around a value.
        assert_eq!(value.trim(), value, "{name}");
        assert!(headers[..at].iter().all(|(other, _)| other != name), "{name} is sent once");
    }
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    RawEvent::from_wire(event.topic(), headers, event.payload().clone()).unwrap()
}

fn assert_within_limits(event: &RawEvent) {
    let fits = |value: &str| (1..=255).contains(&value.len()) && !value.contains(char::is_control);
    assert!(fits(event.id().as_str()) && fits(event.event_type()), "{event:?}");
    assert!(event.key().is_none_or(fits), "{event:?}");
    topic::validate(event.topic()).unwrap();
    for (name, value) in event.headers() {
        header::validate(name, value).unwrap();
        assert!(value.len() <= header::MAX_VALUE_BYTES);
    }
}

proptest! {
    #![proptest_config(properties())]

    #[test]
    fn what_the_builder_accepts_survives_the_wire(
        (id, event_type, topic) in (text(), text(), any_topic()),
        key in proptest::option::of(text()),
        headers in headers(),
        payload in payload(),
    ) {
        let mut builder = RawEvent::builder(event_type, topic).id(id).payload(payload);
        for (name, value) in headers {
            // One header at a time, because most sets of several contain one that is refused.
            if header::validate(&name, &value).is_ok() {
                builder = builder.header(name, value);
            }
        }
        if let Some(key) = key {
            builder = builder.key(key);
        }
        if let Ok(event) = builder.build() {
            assert_within_limits(&event);
            prop_assert_eq!(over_the_wire(&event), event);
        }
    }

    #[test]
    fn what_is_stored_survives_the_wire(
        (event_type, topic) in (text(), any_topic()),
        key in proptest::option::of(text()),
        headers in headers(),
        payload in payload(),
    ) {
        let headers = headers
            .into_iter()
            .filter(|(name, value)| header::validate(name, value).is_ok())
            .collect();
        let (id, payload) = (EventId::generate(), Bytes::from(payload));
        if let Ok(event) = RawEvent::from_parts(id, event_type, topic, key, headers, payload) {
            assert_within_limits(&event);
            prop_assert_eq!(over_the_wire(&event), event);
        }
    }

    #[test]
    fn what_comes_from_outside_is_refused_or_is_an_event_like_any_other(
        topic in any_topic(),
        (id, event_type) in (text(), text()),
        headers in headers(),
        payload in payload(),
    ) {
        let own = [(header::ID.to_owned(), id), (header::TYPE.to_owned(), event_type)];
        // Before or after the others: the first header with a name counts.
        for headers in [[&own[..], &headers].concat(), [&headers, &own[..]].concat()] {
            let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            match RawEvent::from_wire(&topic, headers, Bytes::from(payload.clone())) {
                Ok(event) => {
                    assert_within_limits(&event);
                    prop_assert_eq!(over_the_wire(&event), event);
                }
                Err(error) => prop_assert!(error.to_string().len() < 700, "{}", error),
            }
        }
    }

    #[test]
    fn a_payload_of_any_bytes_is_read_or_refused(payload in payload(), nested in 0..2_000_usize) {
        for payload in [payload, b"[".repeat(nested), br#"{"lines":["#.repeat(nested)] {
            let event = RawEvent::builder(Order::TYPE, "a").payload(payload).build().unwrap();
            let _ = event.decode::<Order>();
        }
    }

    #[test]
    fn a_payload_that_does_not_fit_is_refused_without_being_quoted(
        payload in json("hunter2, expected `x` at line 1")
    ) {
        let payload = payload.to_string();
        let event = RawEvent::builder(Order::TYPE, "a").payload(payload.clone()).build().unwrap();
        if let Err(error) = event.decode::<Order>() {
            let mut next: Option<&dyn Error> = Some(&error);
            while let Some(error) = next {
                prop_assert!(!error.to_string().contains("hunter2"), "{}: {}", payload, error);
                next = error.source();
            }
        }
    }
}

/// JSON that resembles an order, with `marker` in place of a value or a name.
fn json(marker: &'static str) -> impl Strategy<Value = serde_json::Value> {
    use serde_json::{Value, json};
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!(marker)),
        Just(json!("Open")),
    ];
    let names = || {
        let names = vec!["order", "lines", "note", "article", "state", "Sent", "parcel", marker];
        prop::sample::select(names)
    };
    leaf.prop_recursive(5, 32, 6, move |inner| {
        let object = vec((names(), inner.clone()), 0..6).prop_map(|fields| {
            Value::Object(
                fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            )
        });
        let order = (inner.clone(), inner.clone(), inner.clone())
            .prop_map(|(order, line, note)| json!({"order": order, "lines": [line], "note": note}));
        let line = (inner.clone(), inner.clone()).prop_map(
            |(article, state)| json!({"order": 1, "lines": [{"article": article, "state": state}]}),
        );
        prop_oneof![object, order, line, vec(inner, 0..4).prop_map(Value::Array)]
    })
}
