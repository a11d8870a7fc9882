//! Fast-ingest batches: the server itself refuses everything after a lost message.
//!
//! The protocol is [ADR-50](https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-50.md), and its
//! client is `jetstream-extra`. One batch per stream stays open while messages keep coming, in gap mode `fail`. The
//! server acknowledges once for every few hundred messages. [`flush`](Sink::flush) ends the batches, because nothing
//! acknowledges the tail of an open batch. A few messages, and messages for a stream without `allow_batched`, go
//! through a [`KeyedWindow`] instead, which needs one round trip and not two.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::message::OutboundMessage;
use futures::future::BoxFuture;
use jetstream_extra::batch_publish::BatchPubAck;
use jetstream_extra::batch_publish_fast::{
    FastPublishError, FastPublishErrorKind, FastPublishExt, FastPublisher, GapMode,
};
use pillarbox_store::full_text;
use tokio::time::Instant;

use super::keyed_window::check_size;
use super::{FirstSends, KeyedWindow, Sink, SinkError, SinkFailure, Targets, connection};
use crate::acknowledged::Acknowledged;
use crate::message::Message;
use crate::places::{BatchEvents, Holds};

/// One acknowledgement covers at most this many messages.
const FLOW: u16 = 500;
/// How many acknowledgements may be outstanding.
const OUTSTANDING: u16 = 3;
/// At most this many messages are sent without a batch.
const FEW: usize = 32;
/// A batch that is open for so long, or that has so many messages, is ended before others are added. Only its end tells
/// at which sequence an event lies.
const LONGEST: (Duration, usize) = (Duration::from_secs(1), 65_536);
/// After a batch was refused, this many messages are sent one by one, which finds the message at fault.
const ONE_BY_ONE: u64 = 2 * FLOW as u64 * OUTSTANDING as u64;

/// The sink; see the [module](self).
pub(crate) struct FastIngest<'s> {
    context: Context,
    streams: &'s mut Targets,
    acknowledged: Acknowledged,
    ack_timeout: Duration,
    batches: BTreeMap<Arc<str>, IngestBatch>,
    /// How many messages the sink was given.
    taken: u64,
    /// How many messages are still to be sent one by one.
    one_by_one: u64,
    first_sends: Option<FirstSends>,
}

struct IngestBatch {
    publisher: FastPublisher,
    /// The numbers of the messages that were sent and not acknowledged. They count over all streams.
    pending: VecDeque<u64>,
    /// How many messages of the batch are acknowledged.
    acknowledged: u64,
    opened: Instant,
    events: BatchEvents,
}

impl IngestBatch {
    fn acknowledge(&mut self, sequence: u64) {
        while self.acknowledged < sequence && self.pending.pop_front().is_some() {
            self.acknowledged += 1;
        }
    }

    fn is_long(&self) -> bool {
        self.opened.elapsed() >= LONGEST.0 || self.events.len() >= LONGEST.1
    }
}

impl<'s> FastIngest<'s> {
    /// A sink on this context, whose timeout limits the wait for an acknowledgement. `after_refusal`: the previous sink
    /// failed with [`SinkError::BatchRefused`] or [`SinkError::BatchSilent`].
    pub(crate) fn new(
        context: Context,
        ack_timeout: Duration,
        streams: &'s mut Targets,
        acknowledged: Acknowledged,
        after_refusal: bool,
    ) -> Self {
        Self {
            context,
            streams,
            acknowledged,
            ack_timeout,
            batches: BTreeMap::new(),
            taken: 0,
            one_by_one: if after_refusal { ONE_BY_ONE } else { 0 },
            first_sends: None,
        }
    }

    /// Reports messages that are sent for the first time and acknowledged as duplicates. Only a window has
    /// acknowledgements that show this; a batch has none.
    #[must_use]
    pub(crate) fn watching(self, first_sends: Option<FirstSends>) -> Self {
        Self { first_sends, ..self }
    }

    /// How many messages, from the first on, are known to be stored.
    fn stored(&self) -> u64 {
        self.batches
            .values()
            .filter_map(|batch| batch.pending.front().copied())
            .min()
            .unwrap_or(self.taken)
    }

    async fn store_all(&mut self, messages: Vec<Message>) -> Result<(), SinkError> {
        let few = messages.len() <= FEW && self.batches.is_empty();
        let streams = match few || self.one_by_one > 0 {
            true => None,
            false => self.all_allow_batches(&messages).await?,
        };
        let Some(streams) = streams else {
            return self.store_in_window(messages).await;
        };
        self.end_batches_if(IngestBatch::is_long).await?;
        if let Some(first_sends) = &self.first_sends {
            first_sends.sent(&messages);
        }
        let max_payload = self.context.client().max_payload();
        for (message, stream) in messages.into_iter().zip(streams) {
            if let Err(error) = check_size(&message, max_payload) {
                self.end_batches().await?;
                return Err(error);
            }
            let batch = match self.batches.get_mut(&stream) {
                Some(batch) => batch,
                None => {
                    let _ = self.acknowledged.note(&stream, 0, true, None);
                    let publisher = self
                        .context
                        .fast_publish()
                        .flow(FLOW)
                        .max_outstanding_acks(OUTSTANDING)
                        .ack_timeout(self.ack_timeout)
                        .gap_mode(GapMode::Fail)
                        .build()
                        .map_err(failed)?;
                    self.batches.entry(stream).or_insert(IngestBatch {
                        publisher,
                        pending: VecDeque::new(),
                        acknowledged: 0,
                        opened: Instant::now(),
                        events: BatchEvents::default(),
                    })
                }
            };
            batch.pending.push_back(self.taken);
            batch.events.add(message.event_id, message.payload.len());
            self.taken += 1;
            let Message { subject, headers, payload, .. } = message;
            let outbound = OutboundMessage { subject, payload, headers: Some(headers) };
            let sent = batch.publisher.add_message(outbound).await;
            batch.acknowledge(batch.publisher.last_ack_sequence());
            sent.map_err(failed)?;
        }
        Ok(())
    }

    /// The stream of each message, if all of these streams take batches.
    async fn all_allow_batches(
        &mut self,
        messages: &[Message],
    ) -> Result<Option<Vec<Arc<str>>>, SinkError> {
        let mut streams: Vec<Arc<str>> = Vec::with_capacity(messages.len());
        let mut before = None;
        for message in messages {
            // Consecutive messages often have the same subject.
            if let Some(same) = streams.last().filter(|_| before == Some(&message.subject)) {
                streams.push(same.clone());
                continue;
            }
            match self.streams.target(message).await {
                Ok(target) if target.allow_batched => streams.push(target.name.clone()),
                // The window stores as far as it can, and its error names the subject.
                Ok(_) | Err(SinkError::NoStream { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
            before = Some(&message.subject);
        }
        Ok(Some(streams))
    }

    async fn store_in_window(&mut self, messages: Vec<Message>) -> Result<(), SinkError> {
        self.end_batches().await?;
        let count = messages.len() as u64;
        let mut window = KeyedWindow::new(self.context.clone(), self.acknowledged.clone())
            .watching(self.first_sends.clone());
        let result = match window.store(messages).await {
            Ok(_) => window.flush().await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok(_) => {
                self.taken += count;
                self.one_by_one = self.one_by_one.saturating_sub(count);
                Ok(())
            }
            Err(failure) => {
                self.taken += failure.stored;
                Err(failure.error)
            }
        }
    }

    /// Ends all batches. The end of a batch is acknowledged once everything before it is stored.
    async fn end_batches(&mut self) -> Result<(), SinkError> {
        self.end_batches_if(|_| true).await
    }

    async fn end_batches_if(
        &mut self,
        mut ends: impl FnMut(&IngestBatch) -> bool,
    ) -> Result<(), SinkError> {
        let ending = self.batches.iter().filter(|(_, batch)| ends(batch));
        let streams: Vec<Arc<str>> = ending.map(|(stream, _)| stream.clone()).collect();
        for stream in streams {
            let Some(batch) = self.batches.remove(&stream) else {
                continue;
            };
            let first = batch.pending.front().copied();
            if let Err(error) = self.end(&stream, batch).await {
                // Messages that were not acknowledged before do not count as stored.
                self.taken = first.map_or(self.taken, |first| self.taken.min(first));
                return Err(error);
            }
        }
        Ok(())
    }

    async fn end(&mut self, stream: &str, batch: IngestBatch) -> Result<(), SinkError> {
        let IngestBatch { publisher, events, .. } = batch;
        let sent = publisher.size();
        let ack = publisher.close().await.map_err(failed)?;
        let BatchPubAck { sequence, batch_size, .. } = ack;
        let name = self.acknowledged.name(&ack.stream, ack.domain.as_deref().unwrap_or_default());
        // The sequence is that of the last message that the batch added to the stream. 0: all were duplicates.
        self.acknowledged
            .note(&name, sequence, sequence == 0, None)
            .map_err(|before| SinkError::WentBack { stream: name.clone(), sequence, before })?;
        if events.are_comparable() {
            let holds = Holds::OneOf(Arc::new(events));
            self.acknowledged.lies(&name, sequence, holds, connection(&self.context));
        }
        // The end itself is not stored, but some servers count it.
        if batch_size < sent {
            return Err(SinkError::Unavailable(format!(
                "a batch for stream {stream} ended at {batch_size} of {sent} messages"
            )));
        }
        Ok(())
    }
}

impl Sink for FastIngest<'_> {
    fn store(&mut self, messages: Vec<Message>) -> BoxFuture<'_, Result<u64, SinkFailure>> {
        Box::pin(async move {
            match self.store_all(messages).await {
                Ok(()) => Ok(self.stored()),
                Err(error) => Err(SinkFailure { stored: self.stored(), error }),
            }
        })
    }

    fn flush(&mut self) -> BoxFuture<'_, Result<u64, SinkFailure>> {
        Box::pin(async move {
            match self.end_batches().await {
                Ok(()) => Ok(self.stored()),
                Err(error) => Err(SinkFailure { stored: self.stored(), error }),
            }
        })
    }
}

fn failed(error: FastPublishError) -> SinkError {
    match error.kind() {
        // A full stream forgets a batch, or never learns of it, and gives no reason. One message without an answer
        // leaves the whole batch without one. Sending one by one finds the reason.
        FastPublishErrorKind::Timeout => SinkError::BatchSilent(full_text(&error)),
        FastPublishErrorKind::FlowError
        | FastPublishErrorKind::NotEnabled
        | FastPublishErrorKind::UnknownBatchId => SinkError::BatchRefused(full_text(&error)),
        _ => SinkError::Unavailable(full_text(&error)),
    }
}
