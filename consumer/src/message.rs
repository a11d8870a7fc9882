//! Reads a message: an event, or something that is not an event.

use std::sync::Arc;

use async_nats::jetstream::message::Acker;
use pillarbox_event::{Partition, RawEvent, header};
use pillarbox_store::full_text;

use super::scheduler::{Content, Delivered, Undecodable};
use super::subscription::Arrival;

/// Reads a message that was delivered from this partition, if there are several. `None` if JetStream did not deliver
/// it. Whether a handler takes it in batches is for others to say.
pub(super) fn read(arrival: Arrival, partition: Option<Partition>) -> Option<Delivered<Acker>> {
    let place = arrival.place()?;
    let Arrival { message, again } = arrival;
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
    // Without the header, a subject mapping of the server has put it there.
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
    let partition = partition.map_or(0, Partition::number);
    let content = Arc::new(content);
    Some(Delivered { place, partition, again, misfit, in_batches: false, content, acker })
}
