//! A message as it came: an event, or something that is none.

use std::sync::Arc;
use std::time::SystemTime;

use async_nats::jetstream::message::Acker;
use bytes::Bytes;
use pillarbox_event::{Partition, RawEvent, header};
use pillarbox_inbox::source::Unreadable;
use pillarbox_store::full_text;

use super::lanes::Lane;
use super::subscription::Arrival;
use crate::place::Place;

/// What a message holds.
#[derive(Debug)]
pub(super) enum Content {
    Event(Arc<RawEvent>),
    Undecodable(Undecodable),
}

/// A message that is no event.
#[derive(Debug)]
pub(super) struct Undecodable {
    place: Place,
    /// What to call it.
    name: String,
    topic: String,
    headers: Vec<(String, String)>,
    payload: Bytes,
    pub(super) error: String,
}

impl Undecodable {
    pub(super) fn as_stored(&self) -> Unreadable<'_> {
        let Self { place, name: _, topic, headers, payload, error } = self;
        place.unreadable(topic, headers, payload, error)
    }
}

/// A message, read.
pub(super) struct Incoming {
    pub(super) place: Place,
    /// Whether it was delivered before.
    pub(super) again: bool,
    /// The partition that its sender put it in, if that is another one than this message was read from.
    pub(super) misfit: Option<Partition>,
    pub(super) content: Arc<Content>,
    pub(super) acker: Acker,
}

impl Incoming {
    /// Reads a message of this partition, if there are several; `None` for one that is not a JetStream delivery.
    pub(super) fn read(arrival: Arrival, partition: Option<Partition>) -> Option<Self> {
        let Arrival { message, again } = arrival;
        let info = message.info().ok()?;
        // Of whichever type async-nats has it: a feature decides, which any crate may turn on.
        let stored = SystemTime::from(info.published);
        let place = Place::new(info.stream, info.stream_sequence, stored);
        let (message, acker) = message.split();
        let headers: Vec<(String, String)> = message
            .headers
            .iter()
            .flat_map(|headers| headers.iter())
            .flat_map(|(name, values)| {
                values.iter().map(move |value| {
                    (AsRef::<str>::as_ref(name).to_owned(), value.as_str().to_owned())
                })
            })
            .collect();
        let said = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(header::PARTITION));
        let said = said.and_then(|(_, text)| text.parse::<Partition>().ok());
        let misfit = said.filter(|said| partition.is_some_and(|read| read != *said));
        // Without the header, it was put there by a subject mapping of the server.
        let mapped = partition.filter(|_| said.is_none());
        let topic = mapped.and_then(|partition| partition.topic(&message.subject));
        let topic = topic.as_deref().unwrap_or(&message.subject);
        let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let content = match RawEvent::from_wire(topic, pairs, message.payload.clone()) {
            Ok(event) => Content::Event(Arc::new(event)),
            Err(error) => Content::Undecodable(Undecodable {
                place: place.clone(),
                name: place.name(),
                topic: message.subject.to_string(),
                headers,
                payload: message.payload,
                error: full_text(&error),
            }),
        };
        Some(Self { place, again, misfit, content: Arc::new(content), acker })
    }

    /// The lane that keeps its order.
    pub(super) fn lane(&self, ordered: bool) -> Lane {
        match &*self.content {
            Content::Event(event) if ordered => match event.key() {
                Some(key) => Lane::Key(key.into()),
                None => Lane::Alone(self.place.clone()),
            },
            _ => Lane::Alone(self.place.clone()),
        }
    }
}

impl Content {
    pub(super) fn event(&self) -> Option<Arc<RawEvent>> {
        match self {
            Self::Event(event) => Some(event.clone()),
            Self::Undecodable(_) => None,
        }
    }

    /// What to call it in logs.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Event(event) => event.id().as_str(),
            Self::Undecodable(message) => &message.name,
        }
    }
}
