//! Looks for events that the consumer's filters take but that are in none of its partitions, so that nobody reads them.
//!
//! They come from a relay with another number of partitions or with none, or from somebody who published by hand. The
//! status and the log name their subjects. The consumer does nothing else about them, because only the sender can.

use std::time::{Duration, SystemTime};

use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use futures::TryStreamExt;
use pillarbox_event::{Partition, RawEvent};
use pillarbox_inbox::error::BoxError;
use pillarbox_inbox::source::Store;
use pillarbox_store::full_text;
use tokio::time::{sleep, timeout};

use crate::config::ConsumerConfig;
use crate::status::Reporter;

const INTERVAL: Duration = Duration::from_secs(30);

/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// At most this many subjects are looked at, and named.
const MOST: usize = 16;

/// Looks again and again. Without partitions, it does nothing.
pub(crate) async fn look_out(
    jetstream: &jetstream::Context,
    store: &Store,
    config: &ConsumerConfig,
    reporter: &Reporter,
) -> std::convert::Infallible {
    let Some(of) = config.several() else {
        return std::future::pending().await;
    };
    let mut known = Vec::new();
    loop {
        match timeout(PATIENCE, look(jetstream, store, config, of)).await {
            Ok(Ok(strays)) => {
                if strays != known && !strays.is_empty() {
                    let consumer = &config.name;
                    tracing::error!(
                        consumer,
                        stream = config.stream,
                        subjects = ?strays,
                        partitions = of,
                        "no process reads these events, because they are in none of the consumer's partitions; check \
                         that the relay runs with the same number of partitions"
                    );
                    let error = format!("events in none of the partitions: {}", strays.join(", "));
                    reporter.error(None, &error);
                }
                if strays != known {
                    reporter.strays(strays.clone());
                    known = strays;
                }
            }
            Ok(Err(error)) => {
                let error = full_text(&*error);
                tracing::debug!(
                    consumer = config.name,
                    error,
                    "the consumer could not look for events without a partition; it tries again"
                );
            }
            Err(_) => tracing::debug!(
                consumer = config.name,
                "looking for events without a partition took too long; the consumer tries again"
            ),
        }
        sleep(INTERVAL).await;
    }
}

/// The subjects with events that nobody reads, and that were not handled before there were partitions.
async fn look(
    jetstream: &jetstream::Context,
    store: &Store,
    config: &ConsumerConfig,
    of: u32,
) -> Result<Vec<String>, BoxError> {
    let stream = jetstream.get_stream_no_info(&config.stream).await?;
    let mut outside = Vec::new();
    for filter in config.filters() {
        let mut subjects = stream.info_with_subjects(filter).await?;
        while let Some((subject, _)) = subjects.try_next().await? {
            if outside.len() < MOST && !is_in_one(&subject, of) {
                outside.push(subject);
            }
        }
    }
    let mut strays = Vec::new();
    for subject in outside {
        if !is_done_with(&stream, store, config, &subject).await? {
            strays.push(subject);
        }
    }
    strays.sort();
    Ok(strays)
}

/// Whether the last event of a subject is handled, or older than the inbox remembers.
async fn is_done_with(
    stream: &Stream<()>,
    store: &Store,
    config: &ConsumerConfig,
    subject: &str,
) -> Result<bool, BoxError> {
    let message = stream.get_last_raw_message_by_subject(subject).await?;
    let stored = SystemTime::from(message.time);
    if stored.elapsed().unwrap_or_default() >= config.retention {
        return Ok(true);
    }
    let headers = message.headers.iter().flat_map(|(name, values)| {
        values.iter().map(move |value| (AsRef::<str>::as_ref(name), value.as_str()))
    });
    match RawEvent::from_wire(subject, headers, message.payload.clone()) {
        Ok(event) => Ok(store.is_handled(event.identity().as_str()).await?),
        Err(_) => Ok(false),
    }
}

/// Whether a subject is in one of this many partitions.
fn is_in_one(subject: &str, of: u32) -> bool {
    let number = subject.split('.').nth(1).and_then(|word| word.parse().ok());
    let partition = number.and_then(|number| Partition::new(number, of).ok());
    partition.is_some_and(|partition| partition.topic(subject).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_in_a_partition_if_its_second_word_is_one_of_the_numbers() {
        for (subject, is) in [
            ("orders.0.placed", true),
            ("orders.7", true),
            ("orders.8.placed", false),
            ("orders.03.placed", false),
            ("orders.placed", false),
            ("orders.placed.3", false),
            ("orders", false),
        ] {
            assert_eq!(is_in_one(subject, 8), is, "{subject}");
        }
    }
}
