//! Pipelined publishing with at most one unacknowledged message for each key.
//!
//! This is correct on every server: whatever is lost or repeated on the way, a key's next message is not sent before
//! the previous one is stored. It is fast if keys vary; consecutive messages of one key take one round trip each.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, Context};
use futures::future::BoxFuture;
use pillarbox_store::full_text;
use tokio::time::timeout;
use uuid::Uuid;

use super::blame::Blame;
use super::duplicate_ids::First;
use super::targets::{acknowledges_nothing, stream_of};
use super::{FirstSends, Sink, SinkError, SinkFailure, connection};
use crate::acknowledged::{Acknowledged, Doubt};
use crate::message::Message;
use crate::places::{Holds, LARGEST};
use crate::refused::Reason;
use crate::streams::Api;

/// After a message got no answer, how long the broker may take to say which stream takes its subject.
const QUESTION: Duration = Duration::from_millis(500);
/// At most this many messages are under way at a time.
const WINDOW: usize = 1024;

/// The sink; see the [module](self).
pub(crate) struct KeyedWindow {
    context: Context,
    acknowledged: Acknowledged,
    stored: u64,
    /// In the order of sending. The sink waits for the first answer before it reads the next ones.
    under_way: VecDeque<Sent>,
    keys: HashSet<String>,
    first_sends: Option<FirstSends>,
}

/// A message that was sent and is not known to be stored.
struct Sent {
    answer: PublishAckFuture,
    position: i64,
    event_id: Uuid,
    key: Option<String>,
    subject: Subject,
    /// Whether its place may be compared later.
    comparable: bool,
    /// What was sent, if it was sent for the first time.
    first: Option<First>,
}

impl KeyedWindow {
    /// A sink on this context, whose timeout limits the wait for an acknowledgement. It updates `acknowledged`.
    pub(crate) fn new(context: Context, acknowledged: Acknowledged) -> Self {
        Self {
            context,
            acknowledged,
            stored: 0,
            under_way: VecDeque::new(),
            keys: HashSet::new(),
            first_sends: None,
        }
    }

    /// Reports messages that are sent for the first time and acknowledged as duplicates.
    #[must_use]
    pub(crate) fn watching(self, first_sends: Option<FirstSends>) -> Self {
        Self { first_sends, ..self }
    }

    /// The context that it stores through.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    async fn store_all(&mut self, messages: Vec<Message>) -> Result<u64, SinkError> {
        let max_payload = self.context.client().max_payload();
        for message in messages {
            if let Err(error) = check_size(&message, max_payload) {
                self.flush_all().await?;
                return Err(error);
            }
            while self.under_way.len() >= WINDOW
                || message.key.as_ref().is_some_and(|key| self.keys.contains(key))
            {
                self.acknowledge_next().await?;
            }
            self.send(message).await?;
        }
        Ok(self.stored)
    }

    async fn send(&mut self, message: Message) -> Result<(), SinkError> {
        let first = self.first_sends.as_ref().and_then(|first_sends| first_sends.of(&message));
        let Message { position, event_id, key, subject, headers, payload, .. } = message;
        let comparable = payload.len() <= LARGEST;
        let publish = PublishMessage::build().headers(headers).payload(payload);
        let answer = self
            .context
            .send_publish(subject.clone(), publish)
            .await
            .map_err(|error| SinkError::Unavailable(full_text(&error)))?;
        if let Some(key) = &key {
            self.keys.insert(key.clone());
        }
        self.under_way.push_back(Sent {
            answer,
            position,
            event_id,
            key,
            subject,
            comparable,
            first,
        });
        Ok(())
    }

    /// Waits for the oldest acknowledgement.
    async fn acknowledge_next(&mut self) -> Result<(), SinkError> {
        if let Some(sent) = self.under_way.pop_front() {
            let Sent { answer, position, event_id, key, subject, comparable, first } = sent;
            let PublishAck { stream, sequence, domain, duplicate, .. } = match answer.await {
                Ok(ack) => ack,
                Err(error) => {
                    return Err(self.not_stored(error, position, event_id, &subject).await);
                }
            };
            let stream = self.acknowledged.name(&stream, &domain);
            let noted = self.acknowledged.note(&stream, sequence, duplicate, Some(&subject));
            noted.map_err(|before| {
                let stream = stream.clone();
                SinkError::WentBack { stream, sequence, before }
            })?;
            // A duplicate's place is that of its first copy.
            if comparable {
                let holds = Holds::Event(event_id);
                self.acknowledged.lies(&stream, sequence, holds, connection(&self.context));
            }
            if let (true, Some(first), Some(to)) = (duplicate, first, &self.first_sends) {
                to.is_duplicate(position, event_id, subject, first, &stream, sequence);
            }
            if let Some(key) = key {
                self.keys.remove(&key);
            }
            self.stored += 1;
        }
        Ok(())
    }

    /// Finds out why a message was not stored, from the answer or from the stream that should have answered.
    async fn not_stored(
        &self,
        error: PublishError,
        position: i64,
        event_id: Uuid,
        subject: &str,
    ) -> SinkError {
        let unknown = |refusal, error| SinkError::NotStored { position, event_id, refusal, error };
        // Nobody listens to the subject, which is also so if the stream has no leader. Or somebody listens who may be
        // no stream.
        let heard = match error.kind() {
            PublishErrorKind::StreamNotFound => false,
            PublishErrorKind::TimedOut => true,
            _ => {
                let said = std::error::Error::source(&error)
                    .and_then(|said| said.downcast_ref::<jetstream::Error>());
                let text = full_text(&error);
                return match said.map(|said| (Blame::of(said), said.error_code().0)) {
                    Some((Blame::Event(reason), _)) => {
                        SinkError::Message { position, event_id, reason, error: text }
                    }
                    Some((Blame::Unknown, code)) => unknown(Some(code), text),
                    Some((Blame::Subject, code)) => {
                        unknown(Some(code), full_subject(subject, &text))
                    }
                    Some((Blame::Broker, _)) | None => SinkError::Unavailable(text),
                };
            }
        };
        let asked = stream_of(&self.context, position, event_id, subject);
        let Ok(asked) = timeout(QUESTION, asked).await else {
            // The broker does not answer at all, which says nothing about the event.
            return SinkError::Unavailable(full_text(&error));
        };
        let stream = match asked {
            Ok(stream) => stream,
            Err(SinkError::NoStream { position, event_id, subject, .. }) => {
                // A stream may take the subject through a mapping, or in another domain. The API shows neither.
                let api = Api::new(self.context.clone());
                match self.acknowledged.doubt(&subject) {
                    Some(Doubt::Hidden(stream)) => stream,
                    Some(Doubt::TookIt(stream)) if api.shows(&stream).await => stream,
                    _ => return SinkError::NoStream { position, event_id, subject, heard },
                }
            }
            Err(error) => return error,
        };
        match heard {
            true if acknowledges_nothing(&self.context, &stream).await => unknown(
                None,
                format!(
                    "stream {stream} is set to acknowledge nothing (no_ack), so nobody knows what it stores: set no_ack to \
                     false"
                ),
            ),
            true => {
                unknown(None, format!("stream {stream} did not acknowledge it in time ({error})"))
            }
            false => SinkError::Unavailable(format!("stream {stream} does not answer")),
        }
    }

    async fn flush_all(&mut self) -> Result<u64, SinkError> {
        while !self.under_way.is_empty() {
            self.acknowledge_next().await?;
        }
        Ok(self.stored)
    }
}

impl Sink for KeyedWindow {
    fn store(&mut self, messages: Vec<Message>) -> BoxFuture<'_, Result<u64, SinkFailure>> {
        Box::pin(async move {
            let result = self.store_all(messages).await;
            result.map_err(|error| SinkFailure { stored: self.stored, error })
        })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<u64, SinkFailure>> {
        Box::pin(async move {
            let result = self.flush_all().await;
            result.map_err(|error| SinkFailure { stored: self.stored, error })
        })
    }
}

/// The error for an event whose subject is full.
fn full_subject(subject: &str, said: &str) -> String {
    format!(
        "subject {subject:?} is full: its stream keeps a limited number of messages of each subject and refuses new ones \
         ({said}); raise its max_msgs_per_subject, or find out why its consumers do not keep up, and retry the event if it \
         is a dead letter"
    )
}

/// Refuses a message for which the server would close the connection.
pub(super) fn check_size(message: &Message, max_payload: usize) -> Result<(), SinkError> {
    let Message { position, event_id, .. } = *message;
    match message.too_large(max_payload) {
        Some(error) => {
            Err(SinkError::Message { position, event_id, reason: Reason::TooLarge, error })
        }
        None => Ok(()),
    }
}
