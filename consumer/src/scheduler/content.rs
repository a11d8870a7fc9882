//! What a message holds: an event, or something that is not an event.

use std::sync::Arc;

use bytes::Bytes;
use pillarbox_event::RawEvent;
use pillarbox_inbox::source::Unreadable;

use super::lanes::Lane;
use crate::place::Place;

/// What a message holds.
#[derive(Debug)]
pub(crate) enum Content {
    Event(Arc<RawEvent>),
    Undecodable(Undecodable),
}

/// A message that is not an event.
#[derive(Debug)]
pub(crate) struct Undecodable {
    pub(crate) place: Place,
    /// How logs name it.
    pub(crate) name: String,
    pub(crate) topic: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) payload: Bytes,
    /// Why it is not an event.
    pub(crate) error: String,
}

impl Undecodable {
    /// The message as the inbox stores it.
    pub(crate) fn as_stored(&self) -> Unreadable<'_> {
        let Self { place, name: _, topic, headers, payload, error } = self;
        place.unreadable(topic, headers, payload, error)
    }
}

impl Content {
    pub(crate) fn event(&self) -> Option<Arc<RawEvent>> {
        match self {
            Self::Event(event) => Some(event.clone()),
            Self::Undecodable(_) => None,
        }
    }

    /// The event's type.
    pub(super) fn event_type(&self) -> Option<&str> {
        match self {
            Self::Event(event) => Some(event.event_type()),
            Self::Undecodable(_) => None,
        }
    }

    /// How logs name it.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Event(event) => event.id().as_str(),
            Self::Undecodable(message) => &message.name,
        }
    }

    /// The lane in which it waits. `keeps_keys`: the events of a key are handled in their order.
    pub(super) fn lane(&self, place: &Place, keeps_keys: bool) -> Lane {
        match self {
            Self::Event(event) if keeps_keys => match event.key() {
                Some(key) => Lane::Key(key.into()),
                None => Lane::Keyless(place.clone()),
            },
            _ => Lane::Keyless(place.clone()),
        }
    }

    /// The size of the event's payload in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Event(event) => event.payload().len(),
            Self::Undecodable(_) => 0,
        }
    }
}
