//! Pipelined publishing with at most one unacknowledged message for each key.
//!
//! Correct on every server: whatever is lost or repeated on the way, a key's next message is not sent before
//! its previous one is stored. Full speed when keys vary; a run of one key goes at one round trip each.

use std::collections::HashSet;

use async_nats::jetstream::context::{PublishAckFuture, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, Context};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use uuid::Uuid;

use super::streams::stream_of;
use super::{Fault, Sink, SinkError, SinkFailure};
use crate::checkpoint::Acknowledged;
use crate::error::full_text;
use crate::message::Message;

/// The most messages under way at a time.
const WINDOW: usize = 1024;

/// See the [module](self).
pub struct KeyedWindow {
    context: Context,
    acknowledged: Acknowledged,
    stored: u64,
    under_way: FuturesOrdered<BoxFuture<'static, Answered>>,
    keys: HashSet<String>,
}

struct Answered {
    key: Option<String>,
    result: Result<PublishAck, SinkError>,
}

impl KeyedWindow {
    /// A sink on this context, whose timeout is how long an acknowledgement may take. It keeps `acknowledged`.
    pub fn new(context: Context, acknowledged: Acknowledged) -> Self {
        Self {
            context,
            acknowledged,
            stored: 0,
            under_way: FuturesOrdered::new(),
            keys: HashSet::new(),
        }
    }

    async fn store_all(&mut self, messages: Vec<Message>) -> Result<u64, SinkError> {
        for message in messages {
            if let Err(error) = check_size(&message, self.max_payload()) {
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

    fn max_payload(&self) -> usize {
        self.context.client().max_payload()
    }

    async fn send(&mut self, message: Message) -> Result<(), SinkError> {
        let Message { position, event_id, key, subject, headers, payload } = message;
        let publish = PublishMessage::build().headers(headers).payload(payload);
        let sent = self
            .context
            .send_publish(subject.clone(), publish)
            .await
            .map_err(|error| SinkError::Unavailable(full_text(&error)))?;
        if let Some(key) = &key {
            self.keys.insert(key.clone());
        }
        let context = self.context.clone();
        self.under_way.push_back(Box::pin(async move {
            let result = acknowledged(&context, sent, position, event_id, &subject).await;
            Answered { key, result }
        }));
        Ok(())
    }

    /// Waits for the oldest acknowledgement.
    async fn acknowledge_next(&mut self) -> Result<(), SinkError> {
        if let Some(Answered { key, result }) = self.under_way.next().await {
            let PublishAck { stream, sequence, duplicate, .. } = result?;
            went_on(&self.acknowledged, &stream, sequence, duplicate)?;
            if let Some(key) = key {
                self.keys.remove(&key);
            }
            self.stored += 1;
        }
        Ok(())
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

/// Refuses what the server would answer by closing the connection.
pub(super) fn check_size(message: &Message, max_payload: usize) -> Result<(), SinkError> {
    let size = message.wire_size();
    if size <= max_payload {
        return Ok(());
    }
    Err(SinkError::Message {
        position: message.position,
        event_id: message.event_id,
        fault: Fault::TooLarge,
        error: format!(
            "headers and payload are {size} bytes, and the server's max_payload is {max_payload}"
        ),
    })
}

/// Takes note of an acknowledgement. One that goes back is the sign that the stream has lost something.
fn went_on(
    acknowledged: &Acknowledged,
    stream: &str,
    sequence: u64,
    is_repeat: bool,
) -> Result<(), SinkError> {
    if acknowledged.note(stream, sequence, is_repeat) {
        return Ok(());
    }
    Err(SinkError::Unavailable(format!(
        "stream {stream} acknowledges {sequence}, and was further before"
    )))
}

async fn acknowledged(
    context: &Context,
    sent: PublishAckFuture,
    position: i64,
    event_id: Uuid,
    subject: &str,
) -> Result<PublishAck, SinkError> {
    let error = match sent.await {
        Ok(ack) => return Ok(ack),
        Err(error) => error,
    };
    if error.kind() == PublishErrorKind::StreamNotFound {
        // Nobody answered, which is so for a stream without a leader, too.
        let stream = stream_of(context, position, event_id, subject).await?;
        return Err(SinkError::Unavailable(format!("stream {stream} does not answer")));
    }
    let said =
        std::error::Error::source(&error).and_then(|said| said.downcast_ref::<jetstream::Error>());
    Err(match said.and_then(Fault::of) {
        Some(fault) => SinkError::Message { position, event_id, fault, error: full_text(&error) },
        None => SinkError::Unavailable(full_text(&error)),
    })
}
