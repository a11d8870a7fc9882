//! Finds events that a stream did not store because another event had the same id.
//!
//! A stream drops a message whose `Nats-Msg-Id` it has stored within its duplicate window, and acknowledges it. So it
//! is harmless to send an event again. But if a writer gives two events the same id, the second one is dropped too, and
//! its acknowledgement looks like any other. Nobody would notice.
//!
//! A *suspect* is an event that this relay sends for the first time and whose acknowledgement calls it a duplicate.
//! That is no proof, because a former leader may have sent it, or the relay of the cluster that the rows came from. The
//! acknowledgement names the sequence at which the stream has the id. The message there gives the *proof*: it is
//! another event if its payload, type or time differs. A message that cannot be read proves nothing. Without proof
//! nothing is reported, because a false alarm about a lost event would be worse than none.
//!
//! Suspects are checked one after the other, beside shipping. While many suspects wait, further ones are dropped, so
//! that shipping never waits. Fast ingest does not acknowledge each message, so lost events go unnoticed there.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use pillarbox_event::header;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use crate::health::Observer;
use crate::message::Message;
use crate::streams::Api;

/// At most this many suspects wait to be checked.
const WAITING: usize = 256;
/// The log names at most one event in this time, and counts the others.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

/// Knows which events are sent for the first time, and takes suspects. All clones share one state.
#[derive(Clone, Debug)]
pub(crate) struct FirstSends {
    /// The highest position that was sent. A row that committed late has a lower position, and is not checked.
    highest: Arc<AtomicI64>,
    suspects: mpsc::Sender<Suspect>,
}

/// What tells an event that is sent for the first time from another event with the same id.
#[derive(Debug)]
pub(super) struct First {
    payload: Bytes,
    event_type: Option<String>,
    time: Option<String>,
}

/// An event that this relay sends for the first time, and that a stream calls a duplicate.
#[derive(Debug)]
pub(crate) struct Suspect {
    position: i64,
    event_id: Uuid,
    topic: Subject,
    first: First,
    stream: String,
    /// The sequence at which the stream has the event's id.
    sequence: u64,
}

impl FirstSends {
    /// Everything up to this position may have been sent before.
    pub(crate) fn above(position: i64) -> (Self, mpsc::Receiver<Suspect>) {
        let (suspects, looked_at) = mpsc::channel(WAITING);
        (Self { highest: Arc::new(AtomicI64::new(position)), suspects }, looked_at)
    }

    /// What to keep of a message that is about to be sent, if it is sent for the first time.
    pub(super) fn of(&self, message: &Message) -> Option<First> {
        let before = self.highest.fetch_max(message.position, Ordering::Relaxed);
        (before < message.position).then(|| First {
            payload: message.payload.clone(),
            event_type: value(&message.headers, header::TYPE),
            time: value(&message.headers, header::TIME),
        })
    }

    /// Records messages that are sent without an acknowledgement of their own.
    pub(super) fn sent(&self, messages: &[Message]) {
        if let Some(highest) = messages.iter().map(|message| message.position).max() {
            self.highest.fetch_max(highest, Ordering::Relaxed);
        }
    }

    /// Has a suspect checked, unless too many others wait.
    pub(super) fn is_duplicate(
        &self,
        position: i64,
        event_id: Uuid,
        topic: Subject,
        first: First,
        stream: &str,
        sequence: u64,
    ) {
        let stream = stream.to_owned();
        let suspect = Suspect { position, event_id, topic, first, stream, sequence };
        let _ = self.suspects.try_send(suspect);
    }
}

impl First {
    fn is(&self, stored: &StreamMessage) -> bool {
        self.payload == stored.payload
            && self.event_type == value(&stored.headers, header::TYPE)
            && self.time == value(&stored.headers, header::TIME)
    }
}

fn value(headers: &async_nats::HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| value.as_str().to_owned())
}

/// Checks suspects for as long as it is polled. Counts and logs lost events.
pub(crate) async fn look_at(
    mut suspects: mpsc::Receiver<Suspect>,
    api: Api,
    relay: String,
    observer: Observer,
) {
    let (mut said, mut unsaid): (Option<Instant>, u64) = (None, 0);
    while let Some(suspect) = suspects.recv().await {
        let Suspect { position, event_id, topic, first, stream, sequence } = suspect;
        match api.message(&stream, sequence).await {
            Some(stored) if !first.is(&stored) => {}
            Some(_) => continue,
            None => {
                tracing::debug!(relay, %event_id, stream, sequence, "a duplicate was not looked at");
                continue;
            }
        }
        observer.meter.swallowed();
        if said.is_some_and(|said| said.elapsed() < BETWEEN_LINES) {
            unsaid += 1;
            continue;
        }
        tracing::warn!(
            relay,
            %event_id,
            position,
            topic = topic.as_str(),
            stream,
            sequence,
            others = unsaid,
            "this event is not in the stream: its id was used before; publish it again under an id of its own"
        );
        (said, unsaid) = (Some(Instant::now()), 0);
    }
}
