//! Moves a consumer from one number of partitions to another. Nothing unread is left behind, and no later event of a
//! key is read before an earlier one.
//!
//! With another number of partitions, a key's events are in another partition. So the durables of the new number are
//! created only when those of the old number have been read to the end and nobody reads them any longer. Then the old
//! ones are removed. The new ones begin at the stream's beginning, or as far back as the inbox remembers (see
//! `beginning.rs`); what was handled is skipped.
//!
//! ```text
//!   old durables ── in use ──► wait
//!        │ ├─────── unhandled events ──► refuse, and say how many
//!        │ └─────── read to the end ──► make the new ones ──► remove the old ones
//!        └ none ──► make the new ones
//! ```
//!
//! If the relay already uses the new number, the old filters also take events that were sent with it. A durable counts
//! as read to the end if the first event that it has left was sent with the new number.

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::{RetentionPolicy, Stream};
use futures::TryStreamExt;
use pillarbox_event::{Partition, header};
use pillarbox_inbox::source::Store;

use crate::beginning::{begin, first_of};
use crate::config::ConsumerConfig;
use crate::durable::{Durable, NotNow, partitions_of};
use crate::error::ConsumerError;

/// Creates the consumer's durables that are missing, and removes those of another number of partitions.
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
    // Without partitions, the only durable exists, and there is nothing else to do.
    if missing.is_empty() && config.several().is_none() {
        return Ok(());
    }
    let old = match old_ones(stream, config).await {
        Ok(old) => old,
        // The user may lack the right to list them, and the consumer may never have had partitions.
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
    // A work queue allows one durable per subject, and keeps nothing that was handled.
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
    while let Some(name) = names.try_next().await? {
        if partitions_of(&name, &config.name).is_some_and(|partitions| partitions != now) {
            old.push(name);
        }
    }
    Ok(old)
}

/// `replaced`: all new durables exist already, and they were created when this one had been read to the end.
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
        Err(error) => return Err(error.into()),
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

/// Whether the first event that a durable has left was sent with the new number. `false` if that is not known.
async fn goes_on_with(stream: &Stream, old: &Info, number: Option<u32>) -> bool {
    let mut filters = old.config.filter_subjects.clone();
    filters.extend(Some(old.config.filter_subject.clone()).filter(|filter| !filter.is_empty()));
    if filters.is_empty() {
        filters.push(">".into());
    }
    let Ok(first) = first_of(stream, old.ack_floor.stream_sequence + 1, filters).await else {
        return false;
    };
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
                _ => return Err(error.into()),
            },
        }
    }
    Ok(())
}
