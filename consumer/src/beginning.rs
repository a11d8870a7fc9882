//! Where a new durable begins to read: the one lock between what a stream keeps and what the inbox has forgotten.
//!
//! The inbox removes what it handled more than `retention_s` ago. A durable that is new reads the stream again, and
//! what the inbox has forgotten would take effect a second time. So every path that makes a durable comes by here: the
//! first start, a durable that was deleted, a partition, another number of partitions, another generation.
//!
//! The settings do not tell what was forgotten: `retention_s` may have been shorter before, and a consumer that is a
//! day old has forgotten nothing, however old the messages are. So the statement that removes rows writes down, in the
//! same transaction, the newest time at which one of them was handled (`inbox_forgotten`). A message that was stored
//! after that time cannot be among what was forgotten.
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
use async_nats::jetstream::stream::{RawMessageErrorKind, RetentionPolicy, Stream};
use pillarbox_inbox::source::Store;
use pillarbox_store::full_text;

use super::config::AfterLoss;
use super::config::ConsumerConfig;
use super::durable::{Durable, NotNow};
use super::error::ConsumerError;

/// By how much the clocks of the broker and the database may differ.
const CLOCKS: Duration = Duration::from_secs(60);

/// Where these durables begin. `replaces`: they take the place of others that were read to the end.
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
    // Where messages end before what the inbox knows, none is older; that was checked.
    let apart = match settings.max_age.is_zero() {
        true => CLOCKS.min(config.retention() / 10),
        false => Duration::ZERO,
    };
    let remembered = forgotten + apart;
    let Some((sequence, stored)) = oldest(stream, durables).await? else {
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

/// The oldest message that one of these would read: its sequence, and when it was stored.
async fn oldest(
    stream: &Stream,
    durables: &[Durable],
) -> Result<Option<(u64, SystemTime)>, NotNow> {
    let state = &stream.cached_info().state;
    if state.messages == 0 {
        return Ok(None);
    }
    let mut oldest: Option<StreamMessage> = None;
    for filter in durables.iter().flat_map(Durable::all_filters) {
        let first = stream.raw_message_builder().sequence(state.first_sequence.max(1));
        match first.next_by_subject(filter.to_owned()).send().await {
            Ok(first) if oldest.as_ref().is_none_or(|old| first.sequence < old.sequence) => {
                oldest = Some(first);
            }
            Ok(_) => {}
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
            // It may lack the right to ask: then any message may be the one.
            Err(_) => {
                let first = SystemTime::from(state.first_timestamp);
                return Ok(Some((state.first_sequence, first)));
            }
        }
    }
    Ok(oldest.map(|first| (first.sequence, SystemTime::from(first.time))))
}
