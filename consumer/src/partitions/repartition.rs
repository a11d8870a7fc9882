//! From one number of partitions to another: nothing unread is left behind, and no key's later events are read
//! before its earlier ones.
//!
//! With another number a key's events lie in another partition. So the durables of a new number are made only when
//! those of the old one have been read to the end and nobody reads them any more; then the old ones go. The new ones
//! begin at the stream's beginning, or as far back as the inbox remembers (see `beginning.rs`): what was handled is
//! skipped.
//!
//! ```text
//!   old durables ── in use ──► wait
//!        │ ├─────── unhandled events ──► refuse, and say how many
//!        │ └─────── read to the end ──► make the new ones ──► remove the old ones
//!        └ none ──► make the new ones
//! ```
//!
//! Where the relay has begun with the new number, the old filters take events of that, too. A durable is read to the
//! end if the first event that it has left was sent with the new number.

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{RawMessageErrorKind, RetentionPolicy, Stream};
use futures::TryStreamExt;
use pillarbox_event::{Partition, header};
use pillarbox_inbox::source::Store;
use pillarbox_store::full_text;

use crate::beginning::begin;
use crate::config::ConsumerConfig;
use crate::durable::{Durable, NotNow, partitions_of};
use crate::error::ConsumerError;

/// Sees to it that the consumer's durables are there, and none of another number of partitions.
pub(crate) async fn prepare(
    stream: &Stream,
    config: &ConsumerConfig,
    store: &Store,
    pinned: bool,
) -> Result<(), NotNow> {
    let mut missing = Vec::new();
    for durable in Durable::all(config) {
        if !durable.exists(stream).await? {
            missing.push(durable);
        }
    }
    // The only durable is there before it has partitions to be told from.
    if missing.is_empty() && config.several().is_none() {
        return Ok(());
    }
    let old = match old_ones(stream, config).await {
        Ok(old) => old,
        // It may lack the right, and never have had partitions.
        Err(NotNow::Later(reason)) if config.several().is_none() => {
            tracing::warn!(
                consumer = config.name,
                reason,
                "it is not known whether this consumer had partitions before; if it had, make sure that they are read \
                to the end"
            );
            Vec::new()
        }
        Err(other) => return Err(other),
    };
    for name in &old {
        check_old(stream, config, name, missing.is_empty()).await?;
    }
    // A work queue has no two durables for one subject, and nothing that was handled.
    let is_work_queue = stream.cached_info().config.retention == RetentionPolicy::WorkQueue;
    if is_work_queue {
        remove(stream, config, &old).await?;
    }
    let from = begin(stream, config, store, &missing, !old.is_empty()).await?;
    for durable in &missing {
        durable.create(stream, config, pinned, from).await?;
    }
    remove(stream, config, &old).await
}

/// The durables that this consumer has had with other numbers of partitions.
async fn old_ones(stream: &Stream, config: &ConsumerConfig) -> Result<Vec<String>, NotNow> {
    let now = config.several().unwrap_or(1);
    let mut names = stream.consumer_names();
    let mut old = Vec::new();
    while let Some(name) =
        names.try_next().await.map_err(|error| NotNow::Later(full_text(&error)))?
    {
        if partitions_of(&name, &config.name).is_some_and(|partitions| partitions != now) {
            old.push(name);
        }
    }
    Ok(old)
}

/// `replaced` if all new ones are there already: they were made when this one had been read to the end.
async fn check_old(
    stream: &Stream,
    config: &ConsumerConfig,
    name: &str,
    replaced: bool,
) -> Result<(), NotNow> {
    let info = match stream.consumer_info(name).await {
        Ok(info) => info,
        // Another process was faster.
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(NotNow::Later(full_text(&error))),
    };
    if info.num_waiting > 0 {
        return Err(NotNow::Later(format!(
            "other processes of this consumer run with another number of partitions (they read {name}); waiting until \
             they have stopped"
        )));
    }
    let unhandled = info.num_pending + info.num_ack_pending as u64;
    if unhandled > 0 && !replaced && !goes_on_with(stream, &info, config.several()).await {
        return Err(NotNow::Never(ConsumerError::Unread {
            stream: config.stream.clone(),
            name: config.name.clone(),
            durable: name.to_owned(),
            unhandled,
            before: partitions_of(name, &config.name).unwrap_or(1),
            wanted: config.partitions,
        }));
    }
    Ok(())
}

/// Whether the first event that a durable has left was sent with the new number. `false` if that cannot be said.
async fn goes_on_with(stream: &Stream, old: &Info, number: Option<u32>) -> bool {
    let mut filters = old.config.filter_subjects.clone();
    filters.extend(Some(old.config.filter_subject.clone()).filter(|filter| !filter.is_empty()));
    if filters.is_empty() {
        filters.push(">".into());
    }
    let mut first: Option<StreamMessage> = None;
    for filter in filters {
        let from = old.ack_floor.stream_sequence + 1;
        match stream.raw_message_builder().sequence(from).next_by_subject(filter).send().await {
            Ok(next) if first.as_ref().is_none_or(|first| next.sequence < first.sequence) => {
                first = Some(next);
            }
            Ok(_) => {}
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
            Err(_) => return false,
        }
    }
    let said = first.as_ref().and_then(|first| first.headers.get(header::PARTITION));
    let sent_with = said.and_then(|said| said.as_str().parse::<Partition>().ok());
    number.is_some() && sent_with.map(Partition::of) == number
}

async fn remove(stream: &Stream, config: &ConsumerConfig, old: &[String]) -> Result<(), NotNow> {
    for name in old {
        match stream.delete_consumer(name).await {
            Ok(_) => tracing::info!(
                consumer = config.name,
                durable = name,
                "removed a durable consumer of the old number of partitions, which was read to the end"
            ),
            Err(error) => match stream.consumer_info(name).await {
                Err(gone) if gone.kind() == ConsumerInfoErrorKind::NotFound => {}
                _ => return Err(NotNow::Later(full_text(&error))),
            },
        }
    }
    Ok(())
}
