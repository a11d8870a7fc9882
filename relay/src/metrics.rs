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

use metrics::{Counter, Gauge, Histogram, Label, counter, gauge, histogram};
pub use pillarbox_store::metric::{Kind, Metric};

use crate::refused::Reason;

pillarbox_store::metrics! {
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
    SCHEDULED_PENDING = Gauge "pillarbox_scheduled_pending"
        "Scheduled events that have not been released yet.";
    SCHEDULED_HELD = Gauge "pillarbox_scheduled_held"
        "Scheduled events that could not be released when they were due; tried again every minute.";
    SCHEDULED_OVERDUE = Gauge "pillarbox_scheduled_overdue_seconds"
        "For how long the oldest scheduled event has been due by the database's clock; 0 if none is due.";
    SCHEDULED_RELEASED = Counter "pillarbox_scheduled_released_total"
        "Scheduled events moved into the outbox when they were due.";
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

/// The metrics of one relay. Cheap to clone; all clones count together.
#[derive(Clone)]
pub(crate) struct Meter {
    labels: [Label; 2],
    commit_to_ack: Histogram,
    shipped: Counter,
    redelivered: Counter,
    poll: Histogram,
    publish: Histogram,
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
        let counter = |metric: Metric| counter!(metric.name, labels.iter());
        let histogram = |metric: Metric| histogram!(metric.name, labels.iter());
        let meter = Self {
            commit_to_ack: histogram(COMMIT_TO_ACK),
            shipped: counter(SHIPPED),
            redelivered: counter(REDELIVERED),
            poll: histogram(POLL),
            publish: histogram(PUBLISH),
            again: Arc::default(),
            labels,
        };
        meter.gauge(BACKLOG_KNOWN).set(0.0);
        for metric in [LEADER, EPOCH, DATABASE_UP, BROKER_UP, HELD, UNWATCHED] {
            let _present = meter.gauge(metric);
        }
        for metric in [
            SWALLOWED,
            TAKEOVERS,
            RETENTION_DELETED,
            SCHEDULED_RELEASED,
            CHECKPOINTS,
            BROKER_LOST_DATA,
        ] {
            meter.counter(metric).increment(0);
        }
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

    fn gauge(&self, metric: Metric) -> Gauge {
        gauge!(metric.name, self.labels.iter())
    }

    fn counter(&self, metric: Metric) -> Counter {
        counter!(metric.name, self.labels.iter())
    }

    fn by_reason(&self, metric: Metric, reason: &str) -> Counter {
        counter!(metric.name, self.and_reason(reason))
    }

    fn and_reason(&self, reason: &str) -> Vec<Label> {
        let reason = Label::new("reason", reason.to_owned());
        self.labels.iter().cloned().chain([reason]).collect()
    }

    /// Scheduled events were moved into the outbox.
    pub(crate) fn released(&self, events: u64) {
        self.counter(SCHEDULED_RELEASED).increment(events);
    }

    /// As [`backlog`](Self::backlog), absent until it is measured.
    pub(crate) fn scheduled(&self, pending: i64, held: i64, overdue_seconds: f64) {
        self.gauge(SCHEDULED_PENDING).set(number(pending));
        self.gauge(SCHEDULED_HELD).set(number(held));
        self.gauge(SCHEDULED_OVERDUE).set(overdue_seconds);
    }

    pub(crate) fn backlog(&self, events: i64, oldest_age_seconds: f64) {
        // These are absent until they are measured: a zero would say that all is well.
        self.gauge(BACKLOG_EVENTS).set(number(events));
        self.gauge(BACKLOG_AGE).set(oldest_age_seconds);
    }

    /// If the backlog is not known, its metrics are NaN: an old number would say that all is well.
    pub(crate) fn backlog_known(&self, known: bool) {
        self.gauge(BACKLOG_KNOWN).set(flag(known));
        if !known {
            for metric in [BACKLOG_EVENTS, BACKLOG_AGE] {
                self.gauge(metric).set(f64::NAN);
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
        self.counter(SWALLOWED).increment(1);
    }

    pub(crate) fn took_lease(&self, epoch: i64) {
        self.counter(TAKEOVERS).increment(1);
        self.gauge(EPOCH).set(number(epoch));
    }

    pub(crate) fn leader(&self, leading: bool) {
        self.gauge(LEADER).set(flag(leading));
    }

    /// Another process may lead now, so this one resets what only a leader knows.
    pub(crate) fn leads_no_more(&self) {
        self.leader(false);
        self.held(false);
        self.unwatched(0);
    }

    pub(crate) fn database_up(&self, up: bool) {
        self.gauge(DATABASE_UP).set(flag(up));
    }

    pub(crate) fn broker_up(&self, up: bool) {
        self.gauge(BROKER_UP).set(flag(up));
    }

    pub(crate) fn held(&self, held: bool) {
        self.gauge(HELD).set(flag(held));
    }

    pub(crate) fn polled(&self, took: Duration) {
        self.poll.record(took);
    }

    pub(crate) fn published(&self, took: Duration) {
        self.publish.record(took);
    }

    pub(crate) fn removed(&self, rows: i64) {
        self.counter(RETENTION_DELETED).increment(u64::try_from(rows).unwrap_or(0));
    }

    pub(crate) fn unwatched(&self, streams: usize) {
        self.gauge(UNWATCHED).set(number(i64::try_from(streams).unwrap_or(i64::MAX)));
    }

    pub(crate) fn checkpoint(&self) {
        self.counter(CHECKPOINTS).increment(1);
    }

    /// About this many events will be given to the broker again.
    pub(crate) fn broker_lost_data(&self, again: i64) {
        self.counter(BROKER_LOST_DATA).increment(1);
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
