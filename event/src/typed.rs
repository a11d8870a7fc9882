//! How types become events, and events become types.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{excerpt, without_values};
use crate::{DecodeError, EventError, RawEvent, topic};

/// A typed event: it names its event type, its topic and its ordering key.
///
/// To publish it, it must also be [`Serialize`], and to handle it, [`Deserialize`](serde::Deserialize). The payload is
/// its JSON. For other encodings, build a [`RawEvent`].
///
/// ```
/// # use pillarbox_event::{Event, RawEvent};
/// #[derive(Event, serde::Serialize, serde::Deserialize)]
/// #[event(type = "order.placed", topic = "orders.{region}.placed", key = order)]
/// struct OrderPlaced { order: u64, region: String, cents: i64 }
///
/// let event = RawEvent::encode(&OrderPlaced { order: 42, region: "eu".into(), cents: 1999 })?;
/// assert_eq!(OrderPlaced::TOPIC, "orders.*.placed");
/// assert_eq!((event.topic(), event.key()), ("orders.eu.placed", Some("42")));
/// # Ok::<(), pillarbox_event::EventError>(())
/// ```
///
/// `#[derive(Event)]` takes:
///
/// | `#[event(…)]` | what it says |
/// |---|---|
/// | `type = "order.placed"` | [`TYPE`](Self::TYPE). Required |
/// | `topic = "orders.placed"` | [`TOPIC`](Self::TOPIC), and what [`topic`](Self::topic) returns. Required. A field in braces gives a word, or a part of one: `"orders.{region}.placed"` |
/// | `key = order` | what [`key`](Self::key) returns: a field, such as `order`, `0` or `order.id`, that implements [`Display`](std::fmt::Display). An `Option` without a value means no key |
/// | `version = 2` | [`VERSION`](Self::VERSION). 1 if it is left out |
/// | `from = OrderPlacedV1` | an older version of this event, a type that is [`Deserialize`](serde::Deserialize). Events of that version, and of all that it can be made from, are read as this one by its [`TryFrom`], or [`From`] |
///
/// Where the derive is not enough, implement the trait by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event",
    label = "this is not an event",
    note = "put `#[derive(Event)]` and `#[event(type = \"order.placed\", topic = \"orders.placed\")]` on the type, \
            or use a `RawEvent`"
)]
pub trait Event {
    /// The CloudEvents type, such as `order.placed`. It names the meaning of the event and must not change.
    const TYPE: &'static str;

    /// The topics of all events of this type: one NATS subject, such as `orders.placed`, or a pattern with wildcards,
    /// such as `orders.*.placed`. Consumers use it to read these events and no others.
    const TOPIC: &'static str;

    /// The version of the payload, from 1, which is the default. Raise it when a program that knows the payload of
    /// before could not read the new one: see `docs/guides/changing-events.md`. It travels in the header
    /// [`ce-typeversion`](crate::header::TYPE_VERSION), unless it is 1. Events of a newer version than this are not
    /// read: they become dead letters.
    const VERSION: u32 = 1;

    /// The NATS subject to which this event is published. By default it is [`TOPIC`](Self::TOPIC). If that has
    /// wildcards, return a subject that matches it.
    fn topic(&self) -> Cow<'_, str> {
        Self::TOPIC.into()
    }

    /// The ordering key, such as the number of the order. Events with the same key are delivered in the order in
    /// which their transactions committed, provided that the writers serialise on that key, as they do if each of
    /// them first updates the same row. Without a key (the default), no order is promised.
    fn key(&self) -> Option<Cow<'_, str>> {
        None
    }

    /// Reads an event of an older version. By default there is none. Where [`RawEvent::decode_older`] makes it from a
    /// type for the version before, as `from` of the derive does, that type reads the versions before it.
    ///
    /// # Errors
    /// [`DecodeError`], which is a permanent failure. By default [`DecodeError::OlderVersion`].
    fn from_older(event: &RawEvent) -> Result<Self, DecodeError>
    where
        Self: Sized,
    {
        Err(event.too_old(Self::VERSION))
    }
}

impl<E: Event + ?Sized> Event for &E {
    const TYPE: &'static str = E::TYPE;
    const TOPIC: &'static str = E::TOPIC;
    const VERSION: u32 = E::VERSION;

    fn topic(&self) -> Cow<'_, str> {
        (**self).topic()
    }

    fn key(&self) -> Option<Cow<'_, str>> {
        (**self).key()
    }
}

impl RawEvent {
    /// Makes an event from a typed one, with a new id and its JSON as the payload.
    ///
    /// # Errors
    /// [`EventError`] if its topic or key is refused, if its topic does not match [`Event::TOPIC`], or if it cannot be
    /// written as JSON.
    pub fn encode<E: Event + Serialize>(event: &E) -> Result<Self, EventError> {
        const { assert!(E::VERSION > 0, "versions of events start at 1") }
        let payload = serde_json::to_vec(event)
            .map_err(|source| EventError::Encode { event_type: E::TYPE, source })?;
        let mut builder =
            Self::builder(E::TYPE, event.topic()).version(E::VERSION).payload(payload);
        if let Some(key) = event.key() {
            builder = builder.key(key);
        }
        let raw = builder.build()?;
        if raw.topic() != E::TOPIC && !topic::covers(E::TOPIC, raw.topic()) {
            return Err(EventError::Pattern {
                event_type: E::TYPE,
                topic: excerpt(raw.topic()),
                pattern: E::TOPIC,
            });
        }
        Ok(raw)
    }

    /// Reads the payload as a typed event. One of an older version is read by [`Event::from_older`].
    ///
    /// # Errors
    /// [`DecodeError::Type`] if the event has another type; [`DecodeError::NewerVersion`],
    /// [`DecodeError::OlderVersion`] or [`DecodeError::Version`] if it has another version that cannot be read;
    /// [`DecodeError::Payload`] if the payload is not the JSON of that type; [`DecodeError::Upcast`] if an older event
    /// cannot be made one of this version.
    pub fn decode<E: Event + DeserializeOwned>(&self) -> Result<E, DecodeError> {
        if self.event_type != E::TYPE {
            return Err(DecodeError::Type {
                id: self.id.to_string(),
                expected: E::TYPE,
                found: self.event_type.clone(),
            });
        }
        let found = self.readable_version()?;
        match found.cmp(&E::VERSION) {
            Ordering::Equal => {}
            Ordering::Less => return E::from_older(self),
            Ordering::Greater => {
                return Err(DecodeError::NewerVersion {
                    id: self.id.to_string(),
                    event_type: self.event_type.clone(),
                    found,
                    newest: E::VERSION,
                });
            }
        }
        serde_json::from_slice(&self.payload).map_err(|error| DecodeError::Payload {
            id: self.id.to_string(),
            event_type: self.event_type.clone(),
            problem: without_values(&error),
        })
    }

    /// Reads an event of the version of `Old`, or of one before it, and makes it a `New`. Implementations of
    /// [`Event::from_older`] call this.
    ///
    /// ```
    /// # use pillarbox_event::{DecodeError, Event, RawEvent};
    /// # #[derive(Event, serde::Serialize, serde::Deserialize)]
    /// # #[event(type = "order.placed", topic = "orders.placed")]
    /// # struct OrderPlacedV1 { euros: i64 }
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct OrderPlaced { cents: i64 }
    ///
    /// impl From<OrderPlacedV1> for OrderPlaced {
    ///     fn from(old: OrderPlacedV1) -> Self {
    ///         Self { cents: 100 * old.euros }
    ///     }
    /// }
    ///
    /// impl Event for OrderPlaced {
    ///     const TYPE: &'static str = "order.placed";
    ///     const TOPIC: &'static str = "orders.placed";
    ///     const VERSION: u32 = 2;
    ///
    ///     fn from_older(event: &RawEvent) -> Result<Self, DecodeError> {
    ///         event.decode_older::<OrderPlacedV1, Self>()
    ///     }
    /// }
    ///
    /// let old = RawEvent::encode(&OrderPlacedV1 { euros: 3 })?;
    /// assert_eq!(old.decode::<OrderPlaced>()?.cents, 300);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`DecodeError::OlderVersion`] if the event's version lies between those two; [`DecodeError::Upcast`] if the
    /// conversion fails; otherwise as [`decode`](Self::decode).
    pub fn decode_older<Old, New>(&self) -> Result<New, DecodeError>
    where
        Old: Event + DeserializeOwned,
        New: Event + TryFrom<Old, Error: fmt::Display>,
    {
        const { check_older::<Old, New>() }
        if self.readable_version()? > Old::VERSION {
            return Err(self.too_old(New::VERSION));
        }
        let old: Old = self.decode()?;
        New::try_from(old).map_err(|error| DecodeError::Upcast {
            id: self.id.to_string(),
            event_type: self.event_type.clone(),
            from: Old::VERSION,
            to: New::VERSION,
            problem: error.to_string(),
        })
    }

    fn readable_version(&self) -> Result<u32, DecodeError> {
        self.version().ok_or_else(|| DecodeError::Version {
            id: self.id.to_string(),
            event_type: self.event_type.clone(),
        })
    }

    /// The error that no type reads this version.
    fn too_old(&self, known: u32) -> DecodeError {
        DecodeError::OlderVersion {
            id: self.id.to_string(),
            event_type: self.event_type.clone(),
            found: self.version().unwrap_or_default(),
            known,
        }
    }
}

/// Refuses, when it is compiled, an older version that is none. `#[derive(Event)]` calls it, so that `cargo check` says
/// so, too.
#[doc(hidden)]
pub const fn check_older<Old: Event, New: Event>() {
    assert!(
        same(Old::TYPE, New::TYPE),
        "the type named by `from` has another `type`; all versions of an event have the same one"
    );
    assert!(
        same(Old::TOPIC, New::TOPIC),
        "the type named by `from` has another `topic`, so consumers would not read its events; all versions of an \
         event have the same one"
    );
    assert!(
        Old::VERSION < New::VERSION,
        "the type named by `from` must have a lower `version` than the event that is made from it"
    );
}

const fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// What you can publish: an [`Event`] that is [`Serialize`], or a [`RawEvent`], by value or by reference.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be published",
    label = "this is not an event",
    note = "publish a type with `#[derive(Event, serde::Serialize)]`, or a `RawEvent`, by value or by reference"
)]
pub trait IntoEvent {
    /// Makes the event. A typed event gets a new id.
    ///
    /// # Errors
    /// [`EventError`] if the topic, the key or the payload is refused.
    fn into_event(self) -> Result<RawEvent, EventError>;
}

impl IntoEvent for RawEvent {
    fn into_event(self) -> Result<RawEvent, EventError> {
        Ok(self)
    }
}

impl IntoEvent for &RawEvent {
    fn into_event(self) -> Result<RawEvent, EventError> {
        Ok(self.clone())
    }
}

impl<E: Event + Serialize> IntoEvent for E {
    fn into_event(self) -> Result<RawEvent, EventError> {
        RawEvent::encode(&self)
    }
}

/// What a handler can receive: every [`Event`] that is [`Deserialize`](serde::Deserialize), and [`RawEvent`] itself.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from an event",
    label = "this is not an event",
    note = "take a type with `#[derive(Event, serde::Deserialize)]`, or a `RawEvent`"
)]
pub trait FromEvent: Sized {
    /// The only event type that can be read as `Self`, or `None` if every type can.
    const ACCEPTS: Option<&'static str>;

    /// The topics of the events that can be read as `Self`: a NATS subject, perhaps with wildcards. `None` means any.
    const TOPIC: Option<&'static str>;

    /// Reads the event.
    ///
    /// # Errors
    /// [`DecodeError::Type`] if the event has another type; [`DecodeError::Payload`] if its payload does not fit.
    fn from_event(event: &RawEvent) -> Result<Self, DecodeError>;
}

impl FromEvent for RawEvent {
    const ACCEPTS: Option<&'static str> = None;
    const TOPIC: Option<&'static str> = None;

    fn from_event(event: &RawEvent) -> Result<Self, DecodeError> {
        Ok(event.clone())
    }
}

impl<E: Event + DeserializeOwned> FromEvent for E {
    const ACCEPTS: Option<&'static str> = Some(E::TYPE);
    const TOPIC: Option<&'static str> = Some(E::TOPIC);

    fn from_event(event: &RawEvent) -> Result<Self, DecodeError> {
        event.decode()
    }
}
