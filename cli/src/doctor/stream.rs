//! How a stream is set up, and whether that suits the relay. Without I/O.

use std::time::Duration;

use pillarbox_relay::RelayConfig;
use pillarbox_relay::broker::{Retention, StreamInfo};

use super::{Level, Report, said};

const CHECK: &str = "broker.stream";
/// A duplicate window shorter than this is reported. Within its window, a stream drops the messages that a takeover or
/// a lost connection repeats.
const SHORT_WINDOW: Duration = Duration::from_secs(30);

/// Something about a stream that does not suit the relay: how bad it is, what it is, and what to do about it.
type Complaint = (Level, String, String);

fn fail(message: &str, remedy: &str) -> Complaint {
    (Level::Fail, message.to_owned(), remedy.to_owned())
}

fn warn(message: impl Into<String>, remedy: impl Into<String>) -> Complaint {
    (Level::Warn, message.into(), remedy.into())
}

/// Reports what does not suit the relay, or that everything does.
pub(super) fn report_settings(
    name: &str,
    info: &StreamInfo,
    config: &RelayConfig,
    clustered: bool,
    report: &mut Report,
) {
    let edit = format!("nats stream edit {name}");
    let mut complaints = storing(info, clustered, &edit);
    complaints.extend(keeping(info, config, &edit));
    complaints.extend(repeating(info, config, &edit));
    if complaints.is_empty() {
        report.ok(CHECK, format!("stream {name} is set up for the relay"));
    }
    for (level, message, remedy) in complaints {
        report.add(CHECK, level, format!("stream {name} {message}"), Some(remedy));
    }
}

/// What keeps it from storing events, now or soon.
fn storing(info: &StreamInfo, clustered: bool, edit: &str) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    if !info.acknowledges {
        complaints.push(fail(
            "acknowledges nothing, or is sealed: the relay waits forever",
            "create a stream that acknowledges (without no_ack)",
        ));
    }
    if !info.has_leader {
        complaints.push(fail(
            "has no leader: nothing can be stored",
            "start enough of its servers again; `nats stream info` shows which are missing",
        ));
    }
    if !info.lagging_replicas.is_empty() {
        complaints.push(warn(
            format!(
                "has replicas that are offline or behind: {}",
                info.lagging_replicas.join(", ")
            ),
            "repair these servers before another one fails",
        ));
    }
    let full =
        |used: u64, most: Option<u64>| most.is_some_and(|most| used as f64 >= 0.9 * most as f64);
    if info.discards_new
        && (full(info.bytes, info.max_bytes) || full(info.messages, info.max_messages))
    {
        complaints.push(warn(
            "is at least nine tenths full: when it is full, the relay waits",
            format!("raise its limits (`{edit} --max-bytes …`), or find out why its consumers lag"),
        ));
    }
    if clustered && info.replicas == 1 {
        complaints.push(warn(
            "has one replica on a cluster: it is unavailable when its server is",
            format!("run `{edit} --replicas 3`"),
        ));
    }
    complaints
}

/// What makes it lose events that it has stored.
fn keeping(info: &StreamInfo, config: &RelayConfig, edit: &str) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let limited = info.max_bytes.is_some() || info.max_messages.is_some();
    if !info.discards_new && limited && info.retention == Retention::Limits {
        complaints.push(warn(
            "drops its oldest events when it reaches its limit, handled or not",
            format!(
                "run `{edit} --discard new`: the relay then waits, and the outbox keeps what does not fit"
            ),
        ));
    }
    if info.retention == Retention::Interest && info.consumers == 0 {
        complaints.push(fail(
            "keeps events only for consumers (retention interest), and has none: events vanish",
            "create the consumers first, or use retention limits",
        ));
    }
    if info.in_memory {
        complaints.push(warn(
            "is in memory: a restart of its servers loses what it acknowledged",
            "create a stream with file storage",
        ));
    }
    let retention = config.retention;
    if let Some(age) = info.max_age.filter(|age| *age < retention) {
        complaints.push(warn(
            format!(
                "drops events after {}, sooner than the outbox ({}): a consumer that is down for longer misses them",
                said(age.as_secs_f64()),
                said(retention.as_secs_f64())
            ),
            format!("run `{edit} --max-age …`, with a time longer than any consumer may be down"),
        ));
    }
    complaints
}

/// What makes it slow, or lets it store repeated events twice.
fn repeating(info: &StreamInfo, config: &RelayConfig, edit: &str) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    if !info.allows_batches {
        complaints.push(warn(
            "does not take fast-ingest batches: each event of a key takes one round trip",
            "set allow_batched on it (nats-server 2.14 or newer)",
        ));
    }
    let window = info.duplicate_window;
    if window < SHORT_WINDOW.max(2 * config.lease) {
        complaints.push(warn(
            format!(
                "forgets message ids after {}: events that a takeover or a lost connection repeats may be stored twice \
                 (consumers with an inbox skip the second copy)",
                said(window.as_secs_f64())
            ),
            format!("run `{edit} --dupe-window 2m`"),
        ));
    }
    complaints
}
