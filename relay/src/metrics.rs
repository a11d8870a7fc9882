//! What the relay counts and measures, through the [`metrics`](https://docs.rs/metrics) facade.
//!
//! Install a recorder before [`Relay::new`](crate::Relay::new), and the relay's numbers go to it; without one they
//! cost next to nothing. `pillarbox relay` installs a Prometheus recorder and serves it at `/metrics`. What each
//! number means, and what to do about it, is in `docs/operations.md`.
//!
//! All names begin with `pillarbox_`, all units are base units, and every number has the labels `relay`, the
//! relay's name, and `outbox`, its database and schema. Numbers change once for a page or an acknowledgement, not for
//! every event.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Label, Unit, counter, describe_counter, describe_gauge,
    describe_histogram, gauge, histogram,
};

use crate::refused::Reason;

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram,
}

/// A metric's name and meaning.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The name, as Prometheus shows it.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it means; the HELP line.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $constant:ident = $kind:ident $name:literal $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: Metric = Metric { name: $name, kind: Kind::$kind, help: $help };)*
        /// Every metric.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    BUILD_INFO = Gauge "pillarbox_build_info"
        "Always 1; the label version names the program's version.";
    BACKLOG_EVENTS = Gauge "pillarbox_backlog_events"
        "Committed events that have not been shipped, as of the saved cursor.";
    BACKLOG_AGE = Gauge "pillarbox_backlog_oldest_age_seconds"
        "Age of the oldest event in the backlog by the database's clock; 0 without a backlog.";
    BACKLOG_KNOWN = Gauge "pillarbox_backlog_known"
        "1 if the last measurement of the backlog succeeded, 0 before the first one and after a failure.";
    COMMIT_TO_ACK = Histogram "pillarbox_commit_to_ack_seconds"
        "From an event's created_at to the broker's acknowledgement, for up to 16 events of each page.";
    SHIPPED = Counter "pillarbox_shipped_events_total"
        "Events acknowledged by the broker.";
    REDELIVERED = Counter "pillarbox_redelivered_events_total"
        "Shipped events that had already been handed to the broker before a rewind.";
    REWINDS = Counter "pillarbox_rewinds_total"
        "Times that shipping went back to the last acknowledged event, by reason.";
    DEAD_LETTERS = Counter "pillarbox_dead_letters_total"
        "Events set aside because they can never be stored, by reason.";
    UNRESOLVED = Gauge "pillarbox_dead_letters_unresolved"
        "Events set aside and neither retried nor discarded yet, by reason.";
    SWALLOWED = Counter "pillarbox_duplicate_ids_total"
        "Events that a stream dropped because another event has their id; found where each message is acknowledged.";
    LEADER = Gauge "pillarbox_leader"
        "1 in the process that ships, 0 in a process that stands by or waits.";
    EPOCH = Gauge "pillarbox_epoch"
        "The epoch of the lease that this process holds or last held; it grows with every change of holder.";
    TAKEOVERS = Counter "pillarbox_lease_takeovers_total"
        "Times that this process took the lease.";
    DATABASE_UP = Gauge "pillarbox_database_up"
        "1 while the database answers and is a primary with an outbox, 0 otherwise.";
    BROKER_UP = Gauge "pillarbox_broker_up"
        "1 while there is a connection to the broker, 0 otherwise.";
    HELD = Gauge "pillarbox_held"
        "1 while the broker does not store messages and events wait in the outbox; the log says why.";
    POLL = Histogram "pillarbox_poll_duration_seconds"
        "How long it takes to read a page from the outbox, or to find none.";
    PUBLISH = Histogram "pillarbox_publish_duration_seconds"
        "From handing a page to the broker to the acknowledgement of its last event.";
    RETENTION_DELETED = Counter "pillarbox_retention_deleted_rows_total"
        "Shipped rows removed past their retention.";
    CHECKPOINTS = Counter "pillarbox_checkpoints_total"
        "Times that a checkpoint was saved, because all streams held what they had acknowledged.";
    UNWATCHED = Gauge "pillarbox_unwatched_streams"
        "Streams that acknowledged events and that the JetStream API does not show; their loss may go unnoticed.";
    BROKER_LOST_DATA = Counter "pillarbox_broker_lost_data_total"
        "Times that a stream held less than it had acknowledged and shipping went back to a checkpoint.";
}

/// The upper bounds of the histograms' buckets, in seconds: 0.5 ms to 5 minutes.
pub const BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 300.0,
];

/// Tells the recorder what the metrics mean.
fn describe() {
    for Metric { name, kind, help } in ALL {
        match kind {
            Kind::Counter => describe_counter!(*name, *help),
            Kind::Gauge => describe_gauge!(*name, *help),
            Kind::Histogram => describe_histogram!(*name, Unit::Seconds, *help),
        }
    }
}

/// The metrics of one relay. Cheap to clone; all clones count together.
#[derive(Clone)]
pub(crate) struct Meter {
    labels: [Label; 2],
    commit_to_ack: Histogram,
    shipped: Counter,
    redelivered: Counter,
    swallowed: Counter,
    leader: Gauge,
    epoch: Gauge,
    takeovers: Counter,
    database_up: Gauge,
    broker_up: Gauge,
    held: Gauge,
    poll: Histogram,
    publish: Histogram,
    retention_deleted: Counter,
    checkpoints: Counter,
    unwatched: Gauge,
    broker_lost_data: Counter,
    /// Events handed to the broker before a rewind, and not acknowledged since.
    again: Arc<AtomicU64>,
}

impl Meter {
    /// The metrics of the relay with this name. All are present from now on.
    pub(crate) fn new(relay: &str, outbox: &str) -> Self {
        describe();
        gauge!(BUILD_INFO.name, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let labels = [("relay", relay), ("outbox", outbox)]
            .map(|(name, value)| Label::new(name, value.to_owned()));
        let gauge = |metric: Metric| gauge!(metric.name, labels.iter());
        let counter = |metric: Metric| counter!(metric.name, labels.iter());
        let histogram = |metric: Metric| histogram!(metric.name, labels.iter());
        let meter = Self {
            commit_to_ack: histogram(COMMIT_TO_ACK),
            shipped: counter(SHIPPED),
            redelivered: counter(REDELIVERED),
            swallowed: counter(SWALLOWED),
            leader: gauge(LEADER),
            epoch: gauge(EPOCH),
            takeovers: counter(TAKEOVERS),
            database_up: gauge(DATABASE_UP),
            broker_up: gauge(BROKER_UP),
            held: gauge(HELD),
            poll: histogram(POLL),
            publish: histogram(PUBLISH),
            retention_deleted: counter(RETENTION_DELETED),
            checkpoints: counter(CHECKPOINTS),
            unwatched: gauge(UNWATCHED),
            broker_lost_data: counter(BROKER_LOST_DATA),
            again: Arc::default(),
            labels,
        };
        gauge!(BACKLOG_KNOWN.name, meter.labels.iter()).set(0.0);
        // A counter that starts with its first event would hide that event from `increase`.
        for reason in
            ["unavailable", "no_stream", "refused", "batch_refused", "reconnected", "forgotten"]
        {
            meter.by_reason(REWINDS, reason).increment(0);
        }
        for reason in Reason::ALL {
            meter.by_reason(DEAD_LETTERS, &reason.to_string()).increment(0);
        }
        meter
    }

    fn by_reason(&self, metric: Metric, reason: &str) -> Counter {
        counter!(metric.name, self.and_reason(reason))
    }

    fn and_reason(&self, reason: &str) -> Vec<Label> {
        let reason = Label::new("reason", reason.to_owned());
        self.labels.iter().cloned().chain([reason]).collect()
    }

    pub(crate) fn backlog(&self, events: i64, oldest_age_seconds: f64) {
        // These are absent until they are measured: a zero would say that all is well.
        let gauge = |metric: Metric| gauge!(metric.name, self.labels.iter());
        gauge(BACKLOG_EVENTS).set(number(events));
        gauge(BACKLOG_AGE).set(oldest_age_seconds);
    }

    /// If the backlog is not known, its metrics are NaN: an old number would say that all is well.
    pub(crate) fn backlog_known(&self, known: bool) {
        gauge!(BACKLOG_KNOWN.name, self.labels.iter()).set(flag(known));
        if !known {
            for metric in [BACKLOG_EVENTS, BACKLOG_AGE] {
                gauge!(metric.name, self.labels.iter()).set(f64::NAN);
            }
        }
    }

    pub(crate) fn unresolved(&self, reason: &str, events: i64) {
        gauge!(UNRESOLVED.name, self.and_reason(reason)).set(number(events));
    }

    pub(crate) fn shipped(&self, events: u64) {
        self.shipped.increment(events);
        // Only the shipper writes it.
        let again = self.again.load(Ordering::Relaxed).min(events);
        self.again.fetch_sub(again, Ordering::Relaxed);
        self.redelivered.increment(again);
    }

    /// Shipping goes back, and this many events that the broker was given will be given to it again.
    pub(crate) fn given_up(&self, events: u64) {
        self.again.fetch_max(events, Ordering::Relaxed);
    }

    pub(crate) fn commit_to_ack(&self, seconds: f64) {
        // The clocks may differ by more than the latency.
        self.commit_to_ack.record(seconds.max(0.0));
    }

    pub(crate) fn rewound(&self, reason: &str) {
        self.by_reason(REWINDS, reason).increment(1);
    }

    pub(crate) fn dead_letter(&self, reason: Reason) {
        self.by_reason(DEAD_LETTERS, &reason.to_string()).increment(1);
    }

    pub(crate) fn swallowed(&self) {
        self.swallowed.increment(1);
    }

    pub(crate) fn took_lease(&self, epoch: i64) {
        self.takeovers.increment(1);
        self.epoch.set(number(epoch));
    }

    pub(crate) fn leader(&self, leading: bool) {
        self.leader.set(flag(leading));
    }

    /// Another process may lead now, so this one resets what only a leader knows.
    pub(crate) fn leads_no_more(&self) {
        self.leader(false);
        self.held(false);
        self.unwatched(0);
    }

    pub(crate) fn database_up(&self, up: bool) {
        self.database_up.set(flag(up));
    }

    pub(crate) fn broker_up(&self, up: bool) {
        self.broker_up.set(flag(up));
    }

    pub(crate) fn held(&self, held: bool) {
        self.held.set(flag(held));
    }

    pub(crate) fn polled(&self, took: Duration) {
        self.poll.record(took);
    }

    pub(crate) fn published(&self, took: Duration) {
        self.publish.record(took);
    }

    pub(crate) fn removed(&self, rows: i64) {
        self.retention_deleted.increment(u64::try_from(rows).unwrap_or(0));
    }

    pub(crate) fn unwatched(&self, streams: usize) {
        self.unwatched.set(number(i64::try_from(streams).unwrap_or(i64::MAX)));
    }

    pub(crate) fn checkpoint(&self) {
        self.checkpoints.increment(1);
    }

    /// About this many events will be given to the broker again.
    pub(crate) fn broker_lost_data(&self, again: i64) {
        self.broker_lost_data.increment(1);
        self.rewound("forgotten");
        self.given_up(u64::try_from(again).unwrap_or(0));
    }
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn number(value: i64) -> f64 {
    value as f64
}
