//! Decides where a new durable begins to read. This is the one place that keeps apart what a stream still has and what
//! the inbox has forgotten.
//!
//! The inbox removes the rows of events that it handled more than `retention` ago. A new durable reads the stream
//! again, and what the inbox has forgotten would take effect a second time. So every path that creates a durable goes
//! through this module: the first start, a durable that was deleted, a partition, another number of partitions, another
//! generation.
//!
//! The settings do not say what was forgotten: `retention` may have been shorter before, and a consumer that is a day
//! old has forgotten nothing, however old the messages are. So the statement that removes rows also records, in the
//! same transaction, the latest time at which one of their events was handled (`inbox_forgotten`). A message that was
//! stored after that time cannot be among what was forgotten.
//!
//! | | the durable begins |
//! |---|---|
//! | nothing was ever forgotten: a new consumer, or a young one | at the stream's beginning |
//! | the oldest message was stored later than all that was forgotten | at the stream's beginning |
//! | the stream is a work queue, which removes what is acknowledged | at the stream's beginning |
//! | the durables of another number of partitions were read to the end | behind what was forgotten |
//! | else, and `after_loss = remembered` | behind what was forgotten |
//! | else | not at all: [`ConsumerError::Forgotten`] |

use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{
    RawMessageError, RawMessageErrorKind, RetentionPolicy, Stream,
};
use pillarbox_inbox::source::Store;
use pillarbox_store::full_text;

use super::config::{AfterLoss, ConsumerConfig};
use super::durable::{Durable, NotNow};
use super::error::ConsumerError;

/// By how much the clocks of the broker and the database may differ.
const CLOCKS: Duration = Duration::from_secs(60);

/// Where these durables begin. `replaces`: they replace others that were read to the end.
pub(super) async fn begin(
    stream: &Stream,
    config: &ConsumerConfig,
    store: &Store,
    durables: &[Durable],
    replaces: bool,
) -> Result<DeliverPolicy, NotNow> {
    let settings = &stream.cached_info().config;
    if durables.is_empty() || settings.retention == RetentionPolicy::WorkQueue {
        return Ok(DeliverPolicy::All);
    }
    let forgotten = store.forgotten_until().await;
    let forgotten = forgotten.map_err(|error| {
        NotNow::Later(format!(
            "the consumer cannot decide where to start reading, because what the inbox has forgotten is not known: {}",
            full_text(&error)
        ))
    })?;
    let Some(forgotten) = forgotten else {
        return Ok(DeliverPolicy::All);
    };
    // If the stream has an age limit, it was checked to be shorter than the retention, so no message is older than what
    // the inbox knows.
    let apart = match settings.max_age.is_zero() {
        true => CLOCKS.min(config.retention / 10),
        false => Duration::ZERO,
    };
    let remembered = forgotten + apart;
    let Some((sequence, stored)) = oldest(stream, durables).await else {
        return Ok(DeliverPolicy::All);
    };
    if stored > remembered {
        return Ok(DeliverPolicy::All);
    }
    if !replaces && config.after_loss == AfterLoss::Refuse {
        let age = |at: SystemTime| at.elapsed().unwrap_or_default().as_secs();
        return Err(NotNow::Never(ConsumerError::Forgotten {
            name: config.name.clone(),
            stream: config.stream.clone(),
            sequence,
            stored_s: age(stored),
            forgotten_s: age(forgotten),
        }));
    }
    let start = remembered.min(SystemTime::now());
    tracing::warn!(
        consumer = config.name,
        stream = config.stream,
        "the durable consumer starts after what the inbox has forgotten; older messages in the stream are not read"
    );
    Ok(DeliverPolicy::ByStartTime { start_time: start.into() })
}

/// The oldest message that one of these durables would read: its sequence, and when it was stored.
async fn oldest(stream: &Stream, durables: &[Durable]) -> Option<(u64, SystemTime)> {
    let state = &stream.cached_info().state;
    if state.messages == 0 {
        return None;
    }
    let filters = durables.iter().flat_map(Durable::all_filters).map(str::to_owned).collect();
    match first_of(stream, state.first_sequence.max(1), filters).await {
        Ok(oldest) => oldest.map(|first| (first.sequence, SystemTime::from(first.time))),
        // The user may lack the right to ask. Then any message may be the oldest.
        Err(_) => Some((state.first_sequence, SystemTime::from(state.first_timestamp))),
    }
}

/// The first message, from this sequence on, that one of the filters takes.
pub(super) async fn first_of(
    stream: &Stream,
    sequence: u64,
    filters: Vec<String>,
) -> Result<Option<StreamMessage>, RawMessageError> {
    let mut first: Option<StreamMessage> = None;
    for filter in filters {
        match stream.raw_message_builder().sequence(sequence).next_by_subject(filter).send().await {
            Ok(next) if first.as_ref().is_none_or(|first| next.sequence < first.sequence) => {
                first = Some(next);
            }
            Ok(_) => {}
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(first)
}
