//! Compares a durable consumer on the server with what it should be, in every setting that changes what it delivers.
//!
//! Settings that change nothing for the consumer are left out: names and descriptions, replicas, sampling, metadata.

use std::fmt::Debug;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, DeliverPolicy, ReplayPolicy, pull};

/// The description of the durables that a consumer makes.
pub(super) const DESCRIPTION: &str = "Pillarbox inbox";

/// A setting that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) field: &'static str,
    pub(super) found: String,
    pub(super) expected: String,
}

/// The first setting that differs.
pub(super) fn difference(found: &consumer::Config, wanted: &pull::Config) -> Option<Difference> {
    let none = Duration::ZERO;
    let settings = [
        of("deliver_subject", &found.deliver_subject, &None),
        of("headers_only", &found.headers_only, &false),
        of("deliver_policy", &begin(found), &DeliverPolicy::All),
        of("replay_policy", &found.replay_policy, &ReplayPolicy::Instant),
        of("ack_policy", &found.ack_policy, &wanted.ack_policy),
        of(
            "filter_subjects",
            &subjects(&found.filter_subject, &found.filter_subjects),
            &subjects(&wanted.filter_subject, &wanted.filter_subjects),
        ),
        // A backoff takes the place of ack_wait.
        of("backoff", &found.backoff, &wanted.backoff),
        of("ack_wait", &found.ack_wait, &wanted.ack_wait),
        of("max_deliver", &found.max_deliver, &wanted.max_deliver),
        of("max_ack_pending", &found.max_ack_pending, &wanted.max_ack_pending),
        of("priority_policy", &found.priority_policy, &wanted.priority_policy),
        of("priority_groups", &found.priority_groups, &wanted.priority_groups),
        of("priority_timeout", &found.priority_timeout, &wanted.priority_timeout),
        // The durable, and with it the consumer's place in the stream, would be removed when it is idle.
        of("inactive_threshold", &found.inactive_threshold, &none),
        of("memory_storage", &found.memory_storage, &false),
        // Requests beyond them are refused.
        of("max_batch", &found.max_batch.max(0), &0),
        of("max_bytes", &found.max_bytes.max(0), &0),
        of("max_expires", &found.max_expires, &none),
    ];
    settings.into_iter().flatten().next()
}

/// Where the durable begins. One of ours begins at a time if the number of partitions was changed.
fn begin(found: &consumer::Config) -> DeliverPolicy {
    match found.deliver_policy {
        DeliverPolicy::ByStartTime { .. } if found.description.as_deref() == Some(DESCRIPTION) => {
            DeliverPolicy::All
        }
        policy => policy,
    }
}

fn subjects(one: &str, many: &[String]) -> Vec<String> {
    let mut all = many.to_vec();
    if !one.is_empty() {
        all.push(one.to_owned());
    }
    all.sort();
    all
}

fn of<T: Debug + PartialEq>(field: &'static str, found: &T, expected: &T) -> Option<Difference> {
    (found != expected).then(|| Difference {
        field,
        found: format!("{found:?}"),
        expected: format!("{expected:?}"),
    })
}
