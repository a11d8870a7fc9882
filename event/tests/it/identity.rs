//! Events are told apart by source and id, byte for byte, in a text that is no longer than a UUID.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use pillarbox_event::{EventId, Identity, RawEvent, header};
use proptest::prelude::*;

const UUID: &str = "0199b0c5-5c7e-7000-8000-000000000001";

fn read(headers: &[(&str, &str)]) -> RawEvent {
    let headers = headers.iter().copied().chain([("ce-type", "t")]);
    RawEvent::from_wire("a", headers, Bytes::new()).unwrap()
}

fn identity(headers: &[(&str, &str)]) -> String {
    let identity = read(headers).identity().as_str().to_owned();
    assert!((1..=Identity::MAX_BYTES).contains(&identity.len()), "{identity}");
    identity
}

fn assert_all_differ(messages: &[&[(&str, &str)]]) {
    let all: BTreeMap<String, _> =
        messages.iter().map(|headers| (identity(headers), *headers)).collect();
    assert_eq!(all.len(), messages.len(), "{all:?}");
}

#[test]
fn an_id_is_one_within_its_source_only() {
    assert_all_differ(&[
        &[("ce-id", "1")],
        &[("ce-id", "1"), ("ce-source", "")],
        &[("ce-id", "1"), ("ce-source", "/shop")],
        &[("ce-id", "1"), ("ce-source", "/shop/")],
        &[("ce-id", "1"), ("ce-source", "/SHOP")],
        &[("ce-id", "p1"), ("ce-source", "/sho")],
        &[("ce-id", UUID), ("ce-source", "/shop")],
        &[("ce-id", UUID)],
    ]);
}

#[test]
fn what_decoding_throws_away_tells_events_apart() {
    assert_all_differ(&[
        &[("ce-id", "A")],
        &[("ce-id", "%41")],
        &[("ce-id", "a")],
        &[("ce-id", "100%")],
        &[("ce-id", "100%25")],
        &[("ce-id", "%FF")],
        &[("ce-id", "%FE")],
        &[("ce-id", "\u{fffd}")],
        &[("ce-id", "a%2fb")],
        &[("ce-id", "a%2Fb")],
        &[("ce-id", "a%20")],
        &[("ce-id", "a%20%20")],
        &[("ce-id", "caf\u{e9}")],
        &[("ce-id", "cafe\u{301}")],
        &[("ce-id", "1"), ("ce-id", "2")],
        &[("ce-id", "1"), ("ce-id", "3")],
        &[("ce-id", "1"), ("ce-source", "/a"), ("ce-source", "/b")],
        &[("ce-id", "1"), ("ce-source", "/a"), ("ce-source", "/c")],
        &[("ce-id", "1"), ("ce-source", "%2Fa")],
    ]);
}

#[test]
fn what_a_client_may_order_or_write_otherwise_does_not() {
    let one = identity(&[("ce-id", "1"), ("ce-source", "/a"), ("x-tenant", "acme")]);
    assert_eq!(identity(&[("CE-Source", "/a"), ("Ce-Id", "1")]), one);
    let twice = [("ce-id", "1"), ("CE-Id", "2"), ("ce-source", "/a")];
    let read_both = [read(&twice), read(&[twice[2], twice[1], twice[0]])];
    assert_eq!(read_both[0].id(), read_both[1].id());
    assert_eq!(read_both[0].identity(), read_both[1].identity());
}

#[test]
fn an_event_of_an_outbox_is_its_uuid_whatever_the_source_of_its_relay() {
    let outbox = (header::OUTBOX, "1");
    for source in ["/shop", "/orders", "%2Fshop", ""] {
        let event = read(&[("ce-id", UUID), ("ce-source", source), outbox]);
        assert_eq!(event.identity().as_str(), UUID, "{source}");
        assert!(event.headers().keys().all(|name| name != header::OUTBOX));
        let sent: BTreeMap<_, _> = event.wire_headers().collect();
        assert_eq!(sent.get(header::OUTBOX).map(AsRef::as_ref), Some("1"), "it stays one");
    }
    // A relay never sends these.
    assert_all_differ(&[
        &[("ce-id", UUID), outbox],
        &[("ce-id", "1"), ("ce-source", "/shop"), outbox],
        &[("ce-id", "1"), ("ce-source", "/else"), outbox],
        &[("ce-id", &UUID.to_uppercase()), ("ce-source", "/shop"), outbox],
        &[("ce-id", &UUID.replace('-', "")), ("ce-source", "/shop"), outbox],
        &[("ce-id", UUID), ("ce-source", "/shop"), (header::OUTBOX, "2")],
    ]);
    assert!(header::validate(header::OUTBOX, "1").is_err(), "no application sets it");
}

#[test]
fn an_event_keeps_its_identity_through_storage() {
    for headers in [
        [("ce-id", "1"), ("ce-source", "/shop")],
        [("ce-id", "%41"), ("ce-source", "/shop")],
        [("ce-id", UUID), ("ce-source", "/shop")],
        [("ce-id", "~1"), ("x-tenant", "acme")],
    ] {
        for shipped in [false, true] {
            let event = read(&headers);
            let event = if shipped { event.shipped() } else { event };
            let identity = event.identity();
            let (id, event_type, topic, key, stored, payload) = event.clone().into_parts();
            let again = RawEvent::from_parts(id, event_type, topic, key, stored, payload).unwrap();
            let again = again.identified_by(Identity::stored(identity.as_str()));
            assert_eq!((again.identity(), again.is_shipped()), (identity, event.is_shipped()));
        }
    }
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[a-c%~/0]{1,4}",
        2 => "%[4-6C-F][0-9A-F]",
        1 => "[a-z]{30,40}",
        1 => any::<String>(),
        1 => Just(UUID.to_owned()),
        1 => "~[A-Za-z0-9_-]{35}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_two_pairs_of_source_and_id_are_one_event(
        pairs in proptest::collection::vec((proptest::option::of(value()), value()), 1..40)
    ) {
        let pairs: BTreeSet<_> = pairs.into_iter().collect();
        let identities: BTreeSet<_> =
            pairs.iter().map(|(source, id)| Identity::of(source.as_deref(), id)).collect();
        prop_assert_eq!(identities.len(), pairs.len());
        for identity in identities {
            prop_assert!(identity.as_str().len() <= Identity::MAX_BYTES, "{}", identity);
        }
    }

    #[test]
    fn no_two_messages_with_other_bytes_for_source_and_id_are_one_event(
        pairs in proptest::collection::vec((proptest::option::of(value()), value()), 1..40)
    ) {
        let mut seen: BTreeMap<Identity, (Option<String>, String)> = BTreeMap::new();
        for (source, id) in pairs {
            let headers = [Some(("ce-id", id.as_str())), source.as_deref().map(|s| ("ce-source", s))];
            let headers = headers.into_iter().flatten().chain([("ce-type", "t")]);
            let Ok(event) = RawEvent::from_wire("a", headers, Bytes::new()) else { continue };
            let identity = event.identity();
            prop_assert!(identity.as_str().len() <= Identity::MAX_BYTES, "{}", identity);
            if let Some(other) = seen.insert(identity, (source.clone(), id.clone())) {
                prop_assert_eq!(other, (source, id));
            }
        }
    }

    #[test]
    fn the_wire_keeps_it(
        source in proptest::option::of(value()),
        id in value(),
        shipped in any::<bool>(),
    ) {
        prop_assume!(EventId::parse(id.as_str()).is_ok());
        let mut builder = RawEvent::builder("t", "a").id(id);
        if let Some(source) = source {
            builder = builder.source(source);
        }
        let Ok(event) = builder.build() else { return Ok(()) };
        let event = if shipped { event.shipped() } else { event };
        let sent: Vec<_> = event.wire_headers().collect();
        let headers = sent.iter().map(|(name, value)| (*name, value.as_ref()));
        let again = RawEvent::from_wire("a", headers, Bytes::new()).unwrap();
        prop_assert_eq!(again.identity(), event.identity());
    }
}
