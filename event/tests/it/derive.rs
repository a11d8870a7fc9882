//! What `#[derive(Event)]` makes of a type.

use pillarbox_event::{Event, EventError, IntoEvent, RawEvent};
use serde::Serialize;

#[derive(Event, Serialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order)]
struct OrderPlaced {
    order: i64,
}

/// An event that is only named: neither published nor handled.
#[derive(Event)]
#[event(type = "night.came", topic = "nights")]
struct NightCame;

#[derive(Event, Serialize)]
#[event(type = "door.opened", topic = "doors.{0}.opened", key = 1)]
struct DoorOpened(u8, String);

#[derive(Clone, Serialize)]
struct Place {
    country: String,
    town: Option<String>,
}

#[derive(Event, Serialize)]
#[event(type = "parcel.sent")]
#[event(topic = "parcels.to-{place.country}.{carrier}", key = place.country)]
struct ParcelSent<'a, N: Serialize> {
    place: Place,
    carrier: &'a str,
    note: N,
}

#[derive(Event, Serialize)]
#[event(type = "seat.taken", topic = "seats", key = row)]
struct SeatTaken {
    row: Option<u32>,
}

#[derive(Event, Serialize)]
#[event(type = "name.given", topic = "names", key = name)]
struct NameGiven {
    name: Option<String>,
}

#[derive(Event, Serialize)]
#[event(type = "game.ended", topic = "games")]
enum GameEnded {
    Won,
    Lost { by: u8 },
}

fn said(event: impl IntoEvent) -> (String, String, Option<String>) {
    let raw = event.into_event().unwrap();
    (raw.event_type().into(), raw.topic().into(), raw.key().map(str::to_owned))
}

fn is(event_type: &str, topic: &str, key: Option<&str>) -> (String, String, Option<String>) {
    (event_type.into(), topic.into(), key.map(str::to_owned))
}

#[test]
fn a_derived_event_says_its_type_topic_and_key() {
    assert_eq!(said(OrderPlaced { order: 7 }), is("order.placed", "orders.placed", Some("7")));
    assert_eq!(said(DoorOpened(3, "b".into())), is("door.opened", "doors.3.opened", Some("b")));
    assert_eq!(said(SeatTaken { row: Some(4) }), is("seat.taken", "seats", Some("4")));
    assert_eq!(said(SeatTaken { row: None }), is("seat.taken", "seats", None));
    assert_eq!(said(NameGiven { name: Some("x".into()) }), is("name.given", "names", Some("x")));
    assert_eq!(said(NameGiven { name: None }), is("name.given", "names", None));
    assert_eq!(said(GameEnded::Won), is("game.ended", "games", None));
    assert_eq!(said(GameEnded::Lost { by: 2 }), is("game.ended", "games", None));
    assert_eq!((NightCame::TYPE, NightCame::TOPIC), ("night.came", "nights"));
    assert!(NightCame.key().is_none());
}

#[test]
#[expect(clippy::needless_borrows_for_generic_args, reason = "the test is about references")]
fn an_event_is_published_by_value_or_by_reference() {
    let placed = OrderPlaced { order: 7 };
    assert_eq!(said(&placed), said(&&placed));
    let raw = RawEvent::encode(&placed).unwrap();
    assert_eq!(said(&raw), said(raw.clone()));
    assert_eq!(said(placed), said(raw));
}

#[test]
fn a_topic_with_fields_is_a_pattern_for_consumers_and_a_subject_for_each_event() {
    let place = Place { country: "at".into(), town: None };
    let sent = ParcelSent { place: place.clone(), carrier: "post", note: 1 };
    assert!(place.town.is_none());
    assert_eq!(ParcelSent::<u8>::TOPIC, "parcels.*.*");
    assert_eq!(DoorOpened::TOPIC, "doors.*.opened");
    assert_eq!(said(sent), is("parcel.sent", "parcels.to-at.post", Some("at")));
}

#[test]
fn a_field_that_is_not_one_word_of_a_topic_is_refused() {
    for (carrier, expected) in [
        ("a.b", "does not match its TOPIC \"parcels.*.*\""),
        ("*", "it holds a wildcard"),
        ("", "it has an empty word"),
        ("a b", "it holds white space"),
    ] {
        let place = Place { country: "at".into(), town: None };
        let error = RawEvent::encode(&ParcelSent { place, carrier, note: 1 }).unwrap_err();
        assert!(error.to_string().contains(expected), "{carrier:?}: {error}");
    }
}

#[test]
fn an_event_with_a_pattern_must_say_its_topic() {
    #[derive(Serialize)]
    struct Forgot;
    impl Event for Forgot {
        const TYPE: &'static str = "forgot";
        const TOPIC: &'static str = "orders.*";
    }
    let error = RawEvent::encode(&Forgot).unwrap_err();
    assert!(matches!(error, EventError::Topic { .. }), "{error}");
}
