//! The durable consumer on the server: created, or checked to be what it should be; never changed.

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, PriorityPolicy};
use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::Stream;

use super::{ConsumerConfig, ConsumerError};
use crate::error::full_text;

/// The priority group of a pinned consumer.
pub(super) const GROUP: &str = "pillarbox";

/// Why there is no durable consumer now.
pub(super) enum NotNow {
    /// Try again later.
    Later(String),
    /// Trying again cannot help.
    Never(ConsumerError),
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
                "there is no stream {}: create it, and the consumer goes on by itself",
                config.stream
            ))
        }
        _ => NotNow::Later(full_text(&error)),
    })
}

pub(super) async fn ensure(
    stream: &Stream,
    config: &ConsumerConfig,
    pinned: bool,
) -> Result<Consumer<Config>, NotNow> {
    let wanted = wanted(config, pinned);
    match stream.consumer_info(&config.name).await {
        Ok(_) => {}
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {
            // If another process was faster, the next try finds its consumer.
            let created = stream.create_consumer_strict(wanted.clone()).await;
            created.map_err(|error| NotNow::Later(full_text(&error)))?;
        }
        Err(error) => return Err(NotNow::Later(full_text(&error))),
    }
    let consumer = stream
        .get_consumer::<Config>(&config.name)
        .await
        .map_err(|error| NotNow::Later(full_text(&*error)))?;
    match difference(&consumer.cached_info().config, &wanted) {
        None => Ok(consumer),
        Some((field, found, expected)) => Err(NotNow::Never(ConsumerError::Differs {
            stream: config.stream.clone(),
            name: config.name.clone(),
            field,
            found,
            expected,
        })),
    }
}

fn wanted(config: &ConsumerConfig, pinned: bool) -> Config {
    let held = i64::try_from(config.prefetch).unwrap_or(i64::MAX);
    Config {
        durable_name: Some(config.name.clone()),
        description: Some("Pillarbox inbox".into()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: config.ack_wait(),
        // Attempts are counted in the database.
        max_deliver: -1,
        // One process is active with an order, and holds no more than this; without one, many share.
        max_ack_pending: if config.order.keeps_keys() { held } else { held.saturating_mul(64) },
        filter_subjects: config.filter_subjects.clone(),
        priority_policy: if pinned { PriorityPolicy::PinnedClient } else { PriorityPolicy::None },
        priority_groups: if pinned { vec![GROUP.into()] } else { Vec::new() },
        priority_timeout: if pinned { config.takeover() } else { std::time::Duration::ZERO },
        ..Config::default()
    }
}

/// The first setting that is not as wanted: its name, what is there, what should be.
fn difference(
    found: &jetstream::consumer::Config,
    wanted: &Config,
) -> Option<(&'static str, String, String)> {
    let subjects = |one: &str, many: &[String]| {
        let mut all = many.to_vec();
        if !one.is_empty() {
            all.push(one.to_owned());
        }
        all.sort();
        format!("{all:?}")
    };
    let settings = [
        ("ack_policy", format!("{:?}", found.ack_policy), format!("{:?}", wanted.ack_policy)),
        (
            "filter_subjects",
            subjects(&found.filter_subject, &found.filter_subjects),
            subjects(&wanted.filter_subject, &wanted.filter_subjects),
        ),
        ("ack_wait", format!("{:?}", found.ack_wait), format!("{:?}", wanted.ack_wait)),
        ("max_deliver", found.max_deliver.to_string(), wanted.max_deliver.to_string()),
        ("max_ack_pending", found.max_ack_pending.to_string(), wanted.max_ack_pending.to_string()),
        (
            "priority_policy",
            format!("{:?}", found.priority_policy),
            format!("{:?}", wanted.priority_policy),
        ),
        (
            "priority_timeout",
            format!("{:?}", found.priority_timeout),
            format!("{:?}", wanted.priority_timeout),
        ),
    ];
    settings.into_iter().find(|(_, found, wanted)| found != wanted)
}
