//! Stores messages in streams, in order, and says how far.
//!
//! | sink | needs | how order is kept |
//! |---|---|---|
//! | [`FastIngest`] | nats-server 2.14, a stream with `allow_batched` | the server refuses everything after a lost message |
//! | [`KeyedWindow`] | any server with JetStream | at most one unacknowledged message for each key |
//!
//! Plain pipelining with a rewind is not among them: after a cut connection part of the client's buffer is
//! lost, later messages are stored first, and going back cannot mend that, because the broker drops the
//! repeats.

mod blame;
mod fast_ingest;
mod keyed_window;
pub(crate) mod swallowed;
pub(crate) mod targets;

pub(crate) use fast_ingest::FastIngest;
pub(crate) use keyed_window::KeyedWindow;
pub(crate) use swallowed::FirstSends;
pub(crate) use targets::Targets;

use futures::future::BoxFuture;

use crate::config::NoStream;
use crate::message::Message;
use crate::refused::{Reason, Refused};
use crate::streams::Untold;

/// Stores messages in order.
///
/// A sink counts the messages it is given. Both calls return how many of them, from the first on and without
/// a gap, are known to be stored. After a failure or a dropped future it is of no more use: open another,
/// and give it again everything behind the last one known to be stored. What had been stored meanwhile is
/// dropped by the broker, which knows it by its `Nats-Msg-Id`.
pub(crate) trait Sink: Send {
    /// Takes messages. They may still be under way when it returns.
    fn store(&mut self, messages: Vec<Message>) -> BoxFuture<'_, Result<u64, SinkFailure>>;

    /// Waits until everything taken is stored.
    fn flush(&mut self) -> BoxFuture<'_, Result<u64, SinkFailure>>;
}

/// How far a sink came, and why no further.
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
    /// The broker is down, slow, leaderless or full. Not the event's fault: hold and try again.
    #[error("the broker does not store messages now: {0}")]
    Unavailable(String),
    /// No stream takes the subject. Held like an outage, until somebody makes the stream, unless
    /// [`NoStream`] says otherwise.
    #[error(
        "no stream takes the subject {subject:?} of event {event_id}: create one that does, and shipping goes on by itself"
    )]
    NoStream {
        /// The position of the first event with it, in the outbox.
        position: i64,
        /// That event's id.
        event_id: uuid::Uuid,
        /// The subject.
        subject: String,
        /// Whether somebody may have received the event: a subscriber that is no stream.
        heard: bool,
    },
    /// This message is not stored, and it is not known whose fault that is. Store it alone to find out.
    #[error("the broker did not store event {event_id} at position {position}: {error}")]
    NotStored {
        /// Its position in the outbox.
        position: i64,
        /// Its event id.
        event_id: uuid::Uuid,
        /// The code of the server's refusal. `None`: there was no answer.
        refusal: Option<u64>,
        /// What the server said, or that it said nothing.
        error: String,
    },
    /// A stream has lost what it had acknowledged: its sequence went back.
    #[error("stream {stream} acknowledges sequence {sequence}, and was further before ({before})")]
    WentBack {
        /// The stream, with its domain if that is another one than the API's.
        stream: String,
        /// The sequence of a message that was new to it.
        sequence: u64,
        /// A sequence that it had acknowledged before.
        before: u64,
    },
    /// A batch was refused without saying for which message. Store them one by one to find out.
    #[error("the broker refused a batch: {0}")]
    BatchRefused(String),
    /// A batch has no answer: the broker may be away, or one of its messages gets none. Store them one by one to find out.
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
        /// What the broker, or the check before it, said.
        error: String,
    },
}

impl SinkError {
    /// The event to set aside, if this is its fault.
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

    /// The event that is not stored, as far as it is known.
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

    /// What happened in a word, for metrics.
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
