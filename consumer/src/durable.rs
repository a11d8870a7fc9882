//! The durable consumers on the server: created, or checked to be what they should be; never changed.
//!
//! There is one of the consumer's name, or, with partitions, one for each: `payments-p3of8` reads the fourth of
//! eight.

use std::fmt::{Debug, Display};

use async_nats::error::Error;
use async_nats::jetstream;
use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, Info, PriorityPolicy};
use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{self, ConsumerCreateStrictErrorKind, Stream};
use pillarbox_event::Partition;
use pillarbox_store::full_text;

use super::config::ConsumerConfig;
use super::difference::{DESCRIPTION, Difference, difference};
use super::error::ConsumerError;
use super::subjects::overlap;
use pillarbox_event::topic::covers;

/// The priority group of a pinned consumer.
pub(super) const GROUP: &str = "pillarbox";

/// Why there is no durable consumer now.
#[derive(Debug)]
pub(super) enum NotNow {
    /// Try again later.
    Later(String),
    /// Trying again cannot help.
    Never(ConsumerError),
}

impl<Kind: Clone + Debug + Display + PartialEq + 'static> From<Error<Kind>> for NotNow {
    fn from(error: Error<Kind>) -> Self {
        Self::Later(full_text(&error))
    }
}

pub(super) async fn stream(
    jetstream: &jetstream::Context,
    config: &ConsumerConfig,
) -> Result<Stream, NotNow> {
    jetstream.get_stream(&config.stream).await.map_err(|error| match error.kind() {
        GetStreamErrorKind::JetStream(said)
            if said.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND =>
        {
            NotNow::Later(format!(
                "there is no stream {}: create it, and the consumer continues by itself",
                config.stream
            ))
        }
        _ => error.into(),
    })
}

/// A durable consumer, as it should be.
#[derive(Clone, Debug)]
pub(crate) struct Durable {
    pub(crate) name: String,
    /// The partition that it reads, if there are several.
    pub(super) partition: Option<Partition>,
    filters: Vec<String>,
    most_unacknowledged: i64,
}

impl Durable {
    /// The durables that a consumer has.
    pub(crate) fn all(config: &ConsumerConfig) -> Vec<Self> {
        let held = i64::try_from(config.prefetch).unwrap_or(i64::MAX);
        let Some(of) = config.several() else {
            return vec![Self {
                name: config.name.clone(),
                partition: None,
                filters: config.filter_subjects.clone(),
                // One process is active with an order, and holds no more than this; without one, many share.
                most_unacknowledged: held.saturating_mul(if config.order.keeps_keys() {
                    1
                } else {
                    64
                }),
            }];
        };
        let all = (0..of).filter_map(|number| Partition::new(number, of).ok());
        let durable = |partition: Partition| Self {
            name: name_of(&config.name, partition),
            partition: Some(partition),
            filters: config.filters().iter().flat_map(|all| partition.filters(all)).collect(),
            // Of all partitions together, one process holds no more than it may.
            most_unacknowledged: (held / i64::from(of)).max(1),
        };
        all.map(durable).collect()
    }

    /// How many events the server sends of each durable, before it is told of the first.
    pub(super) fn places(config: &ConsumerConfig) -> usize {
        (config.prefetch / config.several().map_or(1, |of| of as usize)).max(1)
    }

    /// What it reads, as filters.
    pub(super) fn all_filters(&self) -> Vec<&str> {
        match self.filters.is_empty() {
            true => vec![">"],
            false => self.filters.iter().map(String::as_str).collect(),
        }
    }

    /// Whether it takes every message of the stream.
    pub(super) fn takes_all(&self, stream: &stream::Config) -> bool {
        let others = stream.mirror.is_some() || stream.sources.is_some();
        let covered = |subject: &String| self.filters.iter().any(|filter| covers(filter, subject));
        self.filters.is_empty()
            || (!others && !stream.subjects.is_empty() && stream.subjects.iter().all(covered))
    }

    /// Whether a message that it takes can come into the stream, as far as the stream's settings tell.
    pub(super) fn may_take_from(&self, stream: &stream::Config) -> bool {
        let others = stream.mirror.is_some()
            || stream.sources.is_some()
            || stream.subject_transform.is_some();
        let takes = |subject: &String| self.filters.iter().any(|filter| overlap(filter, subject));
        others || stream.subjects.is_empty() || stream.subjects.iter().any(takes)
    }

    /// The partition's number; 0 without partitions.
    pub(super) fn number(&self) -> u32 {
        self.partition.map_or(0, Partition::number)
    }

    /// Makes it, if there is none.
    pub(super) async fn create(
        &self,
        stream: &Stream,
        config: &ConsumerConfig,
        pinned: bool,
        from: DeliverPolicy,
    ) -> Result<(), NotNow> {
        let wanted = Config { deliver_policy: from, ..self.wanted(config, pinned) };
        match stream.create_consumer_strict(wanted).await {
            Ok(_) => Ok(()),
            // Another process was faster. Whether it is the same is seen when it is opened.
            Err(error) if error.kind() == ConsumerCreateStrictErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(NotNow::Later(format!(
                "stream {stream} has no durable consumer {name}, and it could not be created: {error}. A user without \
                 the right to publish to {api}.CONSUMER.CREATE.{stream}.{name} gets no answer; let a user that has \
                 this right create it (Consumer::prepare)",
                api = config.api(),
                stream = config.stream,
                name = self.name,
                error = full_text(&error)
            ))),
        }
    }

    /// Finds it, and checks it.
    pub(super) async fn find(
        &self,
        stream: &Stream,
        config: &ConsumerConfig,
        pinned: bool,
    ) -> Result<Info, NotNow> {
        let info = stream.consumer_info(&self.name).await?;
        match self.difference(&info, config, pinned) {
            None => Ok(info),
            Some(differs) => Err(NotNow::Never(differs)),
        }
    }

    /// The first setting in which the durable on the server is not what it should be.
    pub(super) fn difference(
        &self,
        info: &Info,
        config: &ConsumerConfig,
        pinned: bool,
    ) -> Option<ConsumerError> {
        let Difference { field, found, expected } =
            difference(&info.config, &self.wanted(config, pinned))?;
        let (stream, name) = (config.stream.clone(), self.name.clone());
        Some(ConsumerError::Differs { stream, name, field, found, expected })
    }

    /// Whether there is one.
    pub(super) async fn exists(&self, stream: &Stream) -> Result<bool, NotNow> {
        match stream.consumer_info(&self.name).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn wanted(&self, config: &ConsumerConfig, pinned: bool) -> Config {
        Config {
            durable_name: Some(self.name.clone()),
            description: Some(DESCRIPTION.into()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: config.ack_wait,
            // Attempts are counted in the database.
            max_deliver: -1,
            max_ack_pending: self.most_unacknowledged,
            filter_subjects: self.filters.clone(),
            priority_policy: if pinned {
                PriorityPolicy::PinnedClient
            } else {
                PriorityPolicy::None
            },
            priority_groups: if pinned { vec![GROUP.into()] } else { Vec::new() },
            priority_timeout: if pinned { config.takeover } else { std::time::Duration::ZERO },
            ..Config::default()
        }
    }
}

fn name_of(consumer: &str, partition: Partition) -> String {
    format!("{consumer}-p{}of{}", partition.number(), partition.of())
}

/// How many partitions the consumer of this name has, if this is one of its durables; 1 for the only one.
pub(crate) fn partitions_of(durable: &str, consumer: &str) -> Option<u32> {
    let rest = durable.strip_prefix(consumer)?;
    if rest.is_empty() {
        return Some(1);
    }
    let (number, of) = rest.strip_prefix("-p")?.split_once("of")?;
    let partition = Partition::new(number.parse().ok()?, of.parse().ok()?).ok()?;
    (name_of(consumer, partition) == durable).then_some(partition.of())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_compared_with_the_streams_subjects_in_the_partitions_that_are_read() {
        for (topic, partitions, subjects, may) in [
            ("orders.placed", 1, vec!["orders.>"], true),
            ("orders.placed", 1, vec!["returns.>", "orders.placed"], true),
            ("orders.placed", 1, vec!["orders.paid", "returns.>"], false),
            ("orders.*.placed", 1, vec!["orders.eu.>"], true),
            ("orders.*.placed", 1, vec!["orders.placed"], false),
            ("orders.placed", 4, vec!["orders.*.placed"], true),
            ("orders.placed", 4, vec!["orders.3.>"], true),
            ("orders.placed", 4, vec!["orders.4.>"], false),
            ("orders.placed", 4, vec!["orders.placed"], false),
        ] {
            let config = ConsumerConfig { partitions, ..ConsumerConfig::new("ORDERS", "payments") };
            let subjects = subjects.into_iter().map(str::to_owned).collect();
            let mut stream = stream::Config { subjects, ..stream::Config::default() };
            let takes = |stream: &stream::Config| {
                let all = Durable::all(&config.of_topic(topic));
                all.iter().any(|durable| durable.may_take_from(stream))
            };
            assert_eq!(takes(&stream), may, "{topic} in {partitions} from {:?}", stream.subjects);
            stream.sources = Some(Vec::new());
            assert!(takes(&stream), "what comes from elsewhere is not known");
        }
    }

    #[test]
    fn a_partition_has_a_durable_of_its_own_that_can_be_told_from_others() {
        let config = ConsumerConfig {
            filter_subjects: vec!["orders.placed".into(), "returns.>".into()],
            partitions: 8,
            ..ConsumerConfig::new("ORDERS", "payments")
        };
        let all = Durable::all(&config);
        assert_eq!(all.len(), 8);
        assert_eq!(all[3].name, "payments-p3of8");
        assert_eq!(all[3].filters, ["orders.3.placed", "returns.3.>"]);
        assert_eq!(all[3].most_unacknowledged, 32);
        assert_eq!(
            Durable::all(&ConsumerConfig { filter_subjects: vec![], ..config })[0].filters,
            ["*.0", "*.0.>"]
        );
        for (name, partitions) in [
            ("payments", Some(1)),
            ("payments-p3of8", Some(8)),
            ("payments-p8of8", None),
            ("payments-p03of8", None),
            ("payments-g2", None),
            ("payments-g2-p3of8", None),
            ("refunds", None),
        ] {
            assert_eq!(partitions_of(name, "payments"), partitions, "{name}");
        }
    }
}
