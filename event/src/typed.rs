//! How types become events, and events become types.

use std::borrow::Cow;

use serde::{Serialize, de::DeserializeOwned};

use crate::{DecodeError, EventError, RawEvent};

/// A typed event: a serde type that says what it is called, where it goes and what it is ordered by.
///
/// The payload is its JSON. For other encodings build a [`RawEvent`].
pub trait Event: Serialize {
    /// The CloudEvents type, such as `order.placed`. It names the meaning and does not change.
    const TYPE: &'static str;

    /// The NATS subject it is published to, such as `orders.placed`.
    fn topic(&self) -> Cow<'_, str>;

    /// The ordering key, such as the order's number. Events of one key are delivered in the order in which
    /// their transactions committed, provided that the writers serialise on that key, as they do when they
    /// update the same row first. Without a key no order is promised.
    fn key(&self) -> Option<Cow<'_, str>> {
        None
    }
}

/// What can be published: a [`RawEvent`], or a reference to one or to a typed [`Event`].
pub trait IntoEvent {
    /// Makes the event, with a new id if it has none yet.
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

impl<E: Event> IntoEvent for &E {
    fn into_event(self) -> Result<RawEvent, EventError> {
        RawEvent::encode(self)
    }
}

/// What a handler can take: every deserializable [`Event`], and [`RawEvent`] itself.
pub trait FromEvent: Sized {
    /// The only type of event that can be read as this, or `None` if every type can.
    const ACCEPTS: Option<&'static str>;

    /// Reads the event.
    ///
    /// # Errors
    /// [`DecodeError::Type`] if it is of another type, [`DecodeError::Payload`] if its payload does not fit.
    fn from_event(event: &RawEvent) -> Result<Self, DecodeError>;
}

impl FromEvent for RawEvent {
    const ACCEPTS: Option<&'static str> = None;

    fn from_event(event: &RawEvent) -> Result<Self, DecodeError> {
        Ok(event.clone())
    }
}

impl<E: Event + DeserializeOwned> FromEvent for E {
    const ACCEPTS: Option<&'static str> = Some(E::TYPE);

    fn from_event(event: &RawEvent) -> Result<Self, DecodeError> {
        event.decode()
    }
}
