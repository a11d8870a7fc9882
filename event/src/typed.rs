//! How types become events, and events become types.

use std::borrow::Cow;

use serde::{Serialize, de::DeserializeOwned};

use crate::error::without_values;
use crate::{DecodeError, EventError, RawEvent};

/// A typed event: a serde type that names its event type, its topic and its ordering key.
///
/// The payload is the type's JSON. For other encodings, build a [`RawEvent`].
pub trait Event: Serialize {
    /// The CloudEvents type, such as `order.placed`. It names the meaning of the event and must not change.
    const TYPE: &'static str;

    /// The NATS subject to which the event is published, such as `orders.placed`.
    fn topic(&self) -> Cow<'_, str>;

    /// The ordering key, such as the number of the order. Events with the same key are delivered in the order in
    /// which their transactions committed, provided that the writers serialise on that key, as they do if each of
    /// them first updates the same row. Without a key (the default), no order is promised.
    fn key(&self) -> Option<Cow<'_, str>> {
        None
    }
}

impl RawEvent {
    /// Makes an event from a typed one, with a new id and its JSON as the payload.
    ///
    /// # Errors
    /// [`EventError`] if its topic or key is refused, or it cannot be written as JSON.
    pub fn encode<E: Event>(event: &E) -> Result<Self, EventError> {
        let payload = serde_json::to_vec(event)
            .map_err(|source| EventError::Encode { event_type: E::TYPE, source })?;
        let mut builder = Self::builder(E::TYPE, event.topic()).payload(payload);
        if let Some(key) = event.key() {
            builder = builder.key(key);
        }
        builder.build()
    }

    /// Reads the payload as a typed event.
    ///
    /// # Errors
    /// [`DecodeError::Type`] if the event has another type; [`DecodeError::Payload`] if the payload is not the JSON
    /// of that type.
    pub fn decode<E: Event + DeserializeOwned>(&self) -> Result<E, DecodeError> {
        if self.event_type != E::TYPE {
            return Err(DecodeError::Type {
                id: self.id.to_string(),
                expected: E::TYPE,
                found: self.event_type.clone(),
            });
        }
        serde_json::from_slice(&self.payload).map_err(|error| DecodeError::Payload {
            id: self.id.to_string(),
            event_type: self.event_type.clone(),
            problem: without_values(&error),
        })
    }
}

/// What you can publish: a [`RawEvent`], a reference to one, or a reference to a typed [`Event`].
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

impl<E: Event> IntoEvent for &E {
    fn into_event(self) -> Result<RawEvent, EventError> {
        RawEvent::encode(self)
    }
}

/// What a handler can receive: every deserializable [`Event`], and [`RawEvent`] itself.
pub trait FromEvent: Sized {
    /// The only event type that can be read as `Self`, or `None` if every type can.
    const ACCEPTS: Option<&'static str>;

    /// Reads the event.
    ///
    /// # Errors
    /// [`DecodeError::Type`] if the event has another type; [`DecodeError::Payload`] if its payload does not fit.
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
