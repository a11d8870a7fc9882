//! Fast-ingest batches: the server itself refuses everything after a lost message.
//!
//! [ADR-50](https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-50.md), through the
//! client of `jetstream-extra`. One batch for each stream stays open while messages keep coming, in gap mode
//! `fail`; acknowledgements come once for every few hundred messages. [`flush`](Sink::flush) ends the
//! batches, because nothing acknowledges the tail of an open one. Few messages at a time, and messages for a
//! stream without `allow_batched`, go through a [`KeyedWindow`]: one round trip instead of two.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::message::OutboundMessage;
use futures::future::BoxFuture;
use jetstream_extra::batch_publish_fast::{
    FastPublishError, FastPublishErrorKind, FastPublishExt, FastPublisher, GapMode,
};
use pillarbox_store::full_text;

use super::keyed_window::check_size;
use super::{FirstSends, KeyedWindow, Sink, SinkError, SinkFailure, Targets};
use crate::acknowledged::Acknowledged;
use crate::message::Message;

/// How many messages one acknowledgement covers at the most.
const FLOW: u16 = 500;
/// How many acknowledgements may be outstanding.
const OUTSTANDING: u16 = 3;
/// As many messages as this are not worth a batch.
const FEW: usize = 32;
/// After a batch was refused, this many messages go one by one, which finds out the one to blame.
const ONE_BY_ONE: u64 = 2 * FLOW as u64 * OUTSTANDING as u64;

/// See the [module](self).
pub(crate) struct FastIngest<'s> {
    context: Context,
    streams: &'s mut Targets,
    acknowledged: Acknowledged,
    ack_timeout: Duration,
    batches: BTreeMap<Arc<str>, Batch>,
    /// Messages taken so far.
    taken: u64,
    /// Messages still to be sent one by one.
    one_by_one: u64,
    first_sends: Option<FirstSends>,
}

struct Batch {
    publisher: FastPublisher,
    /// The numbers of the messages sent and not yet acknowledged, counted over all streams.
    pending: VecDeque<u64>,
    /// The last acknowledged message, counted within the batch.
    acknowledged: u64,
}

impl Batch {
    fn acknowledge(&mut self, sequence: u64) {
        while self.acknowledged < sequence && self.pending.pop_front().is_some() {
            self.acknowledged += 1;
        }
    }
}

impl<'s> FastIngest<'s> {
    /// A sink on this context, whose timeout is how long an acknowledgement may take. `after_refusal`: the
    /// previous sink failed with [`SinkError::BatchRefused`].
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

    /// Has duplicates looked at among what is sent for the first time, where there are acknowledgements that tell of
    /// them: in a window, and not in a batch.
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
                    self.batches.entry(stream).or_insert(Batch {
                        publisher,
                        pending: VecDeque::new(),
                        acknowledged: 0,
                    })
                }
            };
            batch.pending.push_back(self.taken);
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
            // Subjects come in runs.
            if let Some(same) = streams.last().filter(|_| before == Some(&message.subject)) {
                streams.push(same.clone());
                continue;
            }
            match self.streams.target(message).await {
                Ok(target) if target.allow_batched => streams.push(target.name.clone()),
                // The window comes as far as it can, and names the subject.
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

    /// Ends all batches; each end is acknowledged when everything before it is stored.
    async fn end_batches(&mut self) -> Result<(), SinkError> {
        let streams: Vec<Arc<str>> = self.batches.keys().cloned().collect();
        for stream in streams {
            let Some(Batch { publisher, pending, .. }) = self.batches.remove(&stream) else {
                continue;
            };
            let sent = publisher.size();
            let ended = publisher.close().await.map_err(failed).and_then(|ack| {
                // The end itself is not stored, but some servers count it.
                if ack.batch_size >= sent {
                    let domain = ack.domain.as_deref().unwrap_or_default();
                    let name = self.acknowledged.name(&ack.stream, domain);
                    let _ = self.acknowledged.note(&name, ack.sequence, true, None);
                    Ok(())
                } else {
                    Err(SinkError::Unavailable(format!(
                        "a batch for stream {stream} ended at {} of {sent} messages",
                        ack.batch_size
                    )))
                }
            });
            if let Err(error) = ended {
                // What was not acknowledged before does not count as stored.
                self.taken = pending.front().map_or(self.taken, |first| self.taken.min(*first));
                return Err(error);
            }
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
        // A full stream forgets a batch, or never knows it, and gives no reason, and a message that gets no answer
        // leaves the whole batch without one: one by one it shows.
        FastPublishErrorKind::Timeout => SinkError::BatchSilent(full_text(&error)),
        FastPublishErrorKind::FlowError
        | FastPublishErrorKind::NotEnabled
        | FastPublishErrorKind::UnknownBatchId => SinkError::BatchRefused(full_text(&error)),
        _ => SinkError::Unavailable(full_text(&error)),
    }
}
