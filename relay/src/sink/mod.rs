//! Stores messages in streams, in order, and reports how far it has come.
//!
//! | sink | needs | how order is kept |
//! |---|---|---|
//! | [`FastIngest`] | nats-server 2.14, a stream with `allow_batched` | the server refuses everything after a lost message |
//! | [`KeyedWindow`] | any server with JetStream | at most one unacknowledged message for each key |
//!
//! Plain pipelining with a rewind would not keep the order. After a cut connection, a part of the client's buffer is
//! lost and later messages are stored first. A rewind cannot repair that, because the broker drops the repeated
//! messages.

mod blame;
pub(crate) mod duplicate_ids;
mod fast_ingest;
mod keyed_window;
pub(crate) mod targets;

pub(crate) use duplicate_ids::FirstSends;
pub(crate) use fast_ingest::FastIngest;
pub(crate) use keyed_window::KeyedWindow;
pub(crate) use targets::Targets;

use std::sync::atomic::Ordering;

use async_nats::jetstream::Context;
use futures::future::BoxFuture;

use crate::config::NoStream;
use crate::message::Message;
use crate::refused::{Reason, Refused};
use crate::streams::Untold;

/// The number of the present connection. The client counts before anything goes over a new one, and tells only later
/// that there is one.
pub(crate) fn connection(context: &Context) -> u64 {
    context.client().statistics().connects.load(Ordering::Relaxed)
}

/// Stores messages in order.
///
/// A sink counts the messages that it is given. Both calls return how many of these, from the first on and without a
/// gap, are known to be stored. After a failure or a dropped future, the sink must not be used again: open another one,
/// and give it everything after the last message that is known to be stored. The broker recognises by `Nats-Msg-Id`
/// what had been stored meanwhile, and drops it.
pub(crate) trait Sink: Send {
    /// Takes messages. They may still be under way when the call returns.
    fn store(&mut self, messages: Vec<Message>) -> BoxFuture<'_, Result<u64, SinkFailure>>;

    /// Waits until all messages are stored.
    fn flush(&mut self) -> BoxFuture<'_, Result<u64, SinkFailure>>;
}

/// How far a sink came, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct SinkFailure {
    /// How many messages, from the first on, are known to be stored.
    pub(crate) stored: u64,
    /// What happened.
    #[source]
    pub(crate) error: SinkError,
}

/// Why messages were not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SinkError {
    /// The broker is down, slow, leaderless or full. This is not the event's fault: hold, and try again.
    #[error("the broker does not store messages now: {0}")]
    Unavailable(String),
    /// No stream takes the subject. Hold as in an outage until a stream is created, unless [`NoStream`] says otherwise.
    #[error(
        "no stream takes the subject {subject:?} of event {event_id}: create one that does, and shipping goes on by itself"
    )]
    NoStream {
        /// The position of the first event with this subject.
        position: i64,
        /// That event's id.
        event_id: uuid::Uuid,
        /// The subject.
        subject: String,
        /// Whether a subscriber that is no stream may have received the event.
        heard: bool,
    },
    /// This message was not stored, and it is not known whose fault that is. Store it alone to find out.
    #[error("the broker did not store event {event_id} at position {position}: {error}")]
    NotStored {
        /// Its position in the outbox.
        position: i64,
        /// Its event id.
        event_id: uuid::Uuid,
        /// The error code of the server's refusal. `None`: there was no answer.
        refusal: Option<u64>,
        /// What the server said, or that it said nothing.
        error: String,
    },
    /// A stream has lost messages that it had acknowledged: its sequence went back.
    #[error("stream {stream} acknowledges sequence {sequence}, and was further before ({before})")]
    WentBack {
        /// The stream, with its domain if it is not the API's domain.
        stream: String,
        /// The sequence that it gave a new message.
        sequence: u64,
        /// A higher sequence that it had acknowledged before.
        before: u64,
    },
    /// A batch was refused, and the answer does not say for which message. Store them one by one to find out.
    #[error("the broker refused a batch: {0}")]
    BatchRefused(String),
    /// A batch got no answer. The broker may be away, or one message of the batch gets no answer. Store them one by one
    /// to find out.
    #[error("the broker does not store messages now: {0}")]
    BatchSilent(String),
    /// This message can never be stored.
    #[error("event {event_id} at position {position} cannot be stored ({reason}): {error}")]
    Message {
        /// Its position in the outbox.
        position: i64,
        /// Its event id.
        event_id: uuid::Uuid,
        /// What is wrong with it.
        reason: Reason,
        /// What the broker, or the check before sending, said.
        error: String,
    },
}

impl SinkError {
    /// The event to set aside, if the error is the event's fault.
    pub(crate) fn refused(&self, no_stream: NoStream) -> Option<Refused> {
        match self {
            Self::Message { position, event_id, reason, error } => Some(Refused {
                position: *position,
                event_id: *event_id,
                reason: *reason,
                error: error.clone(),
            }),
            Self::NoStream { position, event_id, .. } if no_stream == NoStream::DeadLetter => {
                Some(Refused {
                    position: *position,
                    event_id: *event_id,
                    reason: Reason::NoStream,
                    error: self.to_string(),
                })
            }
            _ => None,
        }
    }

    /// The position of the event that was not stored, if it is known.
    pub(crate) fn position(&self) -> Option<i64> {
        match self {
            Self::NoStream { position, .. }
            | Self::NotStored { position, .. }
            | Self::Message { position, .. } => Some(*position),
            Self::Unavailable(_)
            | Self::WentBack { .. }
            | Self::BatchRefused(_)
            | Self::BatchSilent(_) => None,
        }
    }

    /// The kind of error in a word, for metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::NoStream { .. } => "no_stream",
            Self::NotStored { refusal: Some(_), .. } => "refused",
            Self::NotStored { refusal: None, .. } => "unavailable",
            Self::WentBack { .. } => "forgotten",
            Self::BatchRefused(_) => "batch_refused",
            Self::BatchSilent(_) => "unavailable",
            Self::Message { .. } => "message",
        }
    }
}

impl From<Untold> for SinkError {
    fn from(error: Untold) -> Self {
        Self::Unavailable(error.to_string())
    }
}
