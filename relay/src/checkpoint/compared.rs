//! Compares what lies in a stream with what it acknowledged there.

use async_nats::jetstream::stream::Stream;
use pillarbox_event::header;
use uuid::Uuid;

use crate::acknowledged::Acks;
use crate::places::{Holds, Naming};
use crate::streams::{Untold, message_of};

/// What the stream has lost, as the places tell that it acknowledged since the last checkpoint. `None`: nothing is
/// proven.
///
/// Only another message at a place is a proof, and only if an event was found at its place before. No message there
/// proves nothing: it was consumed, purged or too old.
pub(super) async fn compare(
    name: &str,
    stream: &Stream,
    acks: &Acks,
    naming: &mut Naming,
) -> Result<Option<String>, Untold> {
    let mut other = None;
    for place in acks.places.iter() {
        let Some(message) = message_of(stream, place.sequence).await? else {
            continue;
        };
        let id = message.headers.get(header::NATS_MSG_ID).map(|id| id.as_str());
        if is_it(id, &place.holds) {
            *naming = Naming::Places;
        } else {
            other = other.or(Some(place.sequence));
        }
    }
    match (other, *naming) {
        (Some(sequence), Naming::Places) => {
            Ok(Some(format!("its message {sequence} is not the event that it acknowledged there")))
        }
        (Some(sequence), Naming::Unknown) => {
            *naming = Naming::Nothing;
            tracing::warn!(
                stream = name,
                sequence,
                "the stream has another message where it acknowledged an event; a loss may go unnoticed there"
            );
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// Whether a message with this message id may be what was stored at a place.
fn is_it(id: Option<&str>, holds: &Holds) -> bool {
    // A retry and a replay add the number of the attempt or the generation.
    let event = id.and_then(|id| id.split('#').next()?.parse::<Uuid>().ok());
    event.is_some_and(|event| holds.may_be(event))
}
