//! Versions of an event: older ones are read through a chain of conversions, and newer ones are refused.

use pillarbox_event::{DecodeError, Event, EventError, RawEvent};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// Euros, as text.
#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
struct V1 {
    order: u32,
    euros: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order, version = 2, from = V1)]
struct V2 {
    order: u32,
    cents: i64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = number, version = 3, from = V2)]
struct V3 {
    number: u32,
    cents: i64,
    currency: String,
}

/// There was no version 4.
#[derive(Event, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = number, version = 5, from = V3)]
struct V5 {
    number: u32,
    price: (i64, String),
}

impl TryFrom<V1> for V2 {
    type Error = std::num::ParseIntError;

    fn try_from(old: V1) -> Result<Self, Self::Error> {
        Ok(Self { order: old.order, cents: 100 * i64::from(old.euros.parse::<i32>()?) })
    }
}

impl From<V2> for V3 {
    fn from(old: V2) -> Self {
        Self { number: old.order, cents: old.cents, currency: "EUR".into() }
    }
}

impl From<V3> for V5 {
    fn from(old: V3) -> Self {
        Self { number: old.number, price: (old.cents, old.currency) }
    }
}

fn versioned(version: u32, payload: &str) -> RawEvent {
    let event = RawEvent::builder("order.placed", "orders.placed").version(version);
    event.payload(payload.to_owned()).build().unwrap()
}

/// Over the wire, as a consumer gets it.
fn delivered(event: &RawEvent) -> RawEvent {
    let headers: Vec<_> =
        event.wire_headers().map(|(n, v)| (n.to_owned(), v.into_owned())).collect();
    let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    RawEvent::from_wire(event.topic(), headers, event.payload().clone()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_older_version_is_read_as_if_each_conversion_was_called(
        number in any::<u32>(),
        euros in any::<i32>(),
        currency in "[A-Z]{3}",
    ) {
        let one = V1 { order: number, euros: euros.to_string() };
        let two = V2 { order: number, cents: 7 * i64::from(euros) };
        let three = V3 { number, cents: i64::from(euros), currency: currency.clone() };
        let five = V5 { number, price: (i64::from(euros), currency) };
        let by_hand = [
            (RawEvent::encode(&one).unwrap(), V5::from(V3::from(V2::try_from(one).unwrap()))),
            (RawEvent::encode(&two).unwrap(), V5::from(V3::from(two))),
            (RawEvent::encode(&three).unwrap(), V5::from(three)),
            (RawEvent::encode(&five).unwrap(), five),
        ];
        for ((raw, expected), version) in by_hand.into_iter().zip([1, 2, 3, 5]) {
            let came = delivered(&raw);
            prop_assert_eq!(came.version(), Some(version));
            prop_assert_eq!(came.key(), Some(&*number.to_string()));
            prop_assert_eq!(came.decode::<V5>().unwrap(), expected);
        }
    }

    #[test]
    fn a_version_is_read_by_no_older_type_and_by_no_type_that_it_leads_not_to(
        version in prop_oneof![1..8_u32, any::<u32>()].prop_filter("it is none", |v| *v > 0),
    ) {
        let came = delivered(&versioned(version, "{}"));
        prop_assert_eq!(came.version(), Some(version));
        let refusals = [
            (1, came.decode::<V1>().unwrap_err()),
            (2, came.decode::<V2>().unwrap_err()),
            (3, came.decode::<V3>().unwrap_err()),
            (5, came.decode::<V5>().unwrap_err()),
        ];
        for (newest, refused) in refusals {
            let said = refused.to_string();
            match refused {
                DecodeError::NewerVersion { .. } => {
                    prop_assert!(version > newest, "{said}");
                    let text = format!("has version {version}, and this program knows versions up to {newest};");
                    prop_assert!(said.contains(&text) && said.contains("deploy a program"), "{said}");
                }
                DecodeError::OlderVersion { .. } => {
                    prop_assert_eq!((version, newest), (4, 5));
                    prop_assert!(said.contains("reads version 5 but not version 4; add a type"), "{said}");
                }
                // The payload is that of no version, so it was tried.
                DecodeError::Payload { .. } => prop_assert!(version <= newest && version != 4, "{said}"),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}

#[test]
fn version_1_says_nothing_and_later_ones_travel_in_a_header() {
    let header = |event: &RawEvent| event.header("ce-typeversion").map(str::to_owned);
    let one = RawEvent::encode(&V1 { order: 1, euros: "1".into() }).unwrap();
    assert_eq!((header(&one), V1::VERSION, <&V2>::VERSION), (None, 1, 2));
    let two = RawEvent::encode(&V2 { order: 1, cents: 1 }).unwrap();
    assert_eq!(header(&two).as_deref(), Some("2"));
    let headers: Vec<_> =
        two.wire_headers().filter(|(name, _)| *name == "ce-typeversion").collect();
    assert_eq!(headers, [("ce-typeversion", "2".into())]);
    let said = RawEvent::builder("t", "a").version(0).build().unwrap_err();
    assert!(matches!(said, EventError::HeaderValue { .. }), "{said}");
    let back = RawEvent::builder("t", "a").version(3).version(1).build().unwrap();
    assert_eq!((header(&back), back.version()), (None, Some(1)));
}

#[test]
fn a_header_that_is_no_version_is_refused_where_the_version_matters() {
    for wrong in ["", "0", "-1", "+2", "1.0", " 2", "two", "4294967296"] {
        let event = RawEvent::builder("order.placed", "orders.placed").payload("{}");
        let event = event.header("CE-TypeVersion", wrong).build().unwrap();
        assert_eq!(event.version(), None, "{wrong:?}");
        let said = event.decode::<V2>().unwrap_err().to_string();
        assert!(said.contains("must be a whole number from 1; correct the producer"), "{said}");
        assert!(!said.contains("4294967296"), "{said}");
    }
    let event = RawEvent::builder("order.placed", "orders.placed").header("ce-typeversion", "02");
    assert_eq!(event.build().unwrap().version(), Some(2));
}

#[test]
fn a_conversion_that_fails_says_between_which_versions() {
    let event = versioned(1, r#"{"order": 1, "euros": "three"}"#);
    let refused = event.decode::<V5>().unwrap_err();
    assert!(matches!(refused, DecodeError::Upcast { from: 1, to: 2, .. }), "{refused}");
    assert!(
        refused.to_string().ends_with("cannot be made version 2: invalid digit found in string")
    );
}

#[test]
fn a_type_that_names_no_older_version_reads_none() {
    #[derive(Event, Debug, Deserialize)]
    #[event(type = "order.placed", topic = "orders.placed", version = 2)]
    struct OnlyTwo {}
    versioned(2, "{}").decode::<OnlyTwo>().unwrap();
    let refused = versioned(1, "{}").decode::<OnlyTwo>().unwrap_err();
    assert!(matches!(refused, DecodeError::OlderVersion { found: 1, known: 2, .. }), "{refused}");
}
