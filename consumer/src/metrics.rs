//! A consumer's metrics, through the [`metrics`](https://docs.rs/metrics) facade.
//!
//! Install a recorder before you call [`Consumer::new`](crate::Consumer::new), and the consumer's metrics go to it.
//! Without a recorder they cost next to nothing. [`Consumer::status`](crate::Consumer::status) shows the same lag
//! without a recorder.
//!
//! All names begin with `pillarbox_inbox_`, all units are base units, and every metric has the label `consumer`.
//! Counters and the histogram are about this process. The gauges of the lag are about the durable consumer, so they are
//! the same in every process that serves it. The age is the exception: it is the age of the oldest event that the
//! process holds or, if it holds none, of the oldest event that the stream has for the consumer. Over several
//! processes, take the maximum of these gauges, not the sum.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Label, counter, gauge, histogram};
use pillarbox_inbox::Fault;
pub use pillarbox_store::metric::{Kind, Metric};
use serde::Serialize;

pillarbox_store::metrics! {
    HANDLED = Counter "pillarbox_inbox_handled_events_total"
        "Events whose handler's transaction was committed.";
    DUPLICATES = Counter "pillarbox_inbox_duplicate_events_total"
        "Events that were delivered again after they had been handled, and were skipped.";
    FAILURES = Counter "pillarbox_inbox_failures_total"
        "Failed handlings by fault: transient, permanent, outage, environment, conflict.";
    RETRIES = Counter "pillarbox_inbox_retries_total"
        "Events put back to be tried again, after an attempt that counted, an outage or a conflict.";
    DEAD_LETTERS = Counter "pillarbox_inbox_dead_letters_total"
        "Events given up, by reason.";
    REMOVED = Counter "pillarbox_inbox_removed_events_total"
        "Events that the stream removed before they were delivered, as a lower bound. Each process counts those that \
        it sees.";
    DURATION = Histogram "pillarbox_inbox_handling_duration_seconds"
        "From opening an event's transaction to its commit or failure; duplicates are left out.";
    PENDING = Gauge "pillarbox_inbox_pending_events"
        "Events of the stream that the durable consumer has not delivered yet.";
    ACK_PENDING = Gauge "pillarbox_inbox_ack_pending_events"
        "Events delivered and not acknowledged: being handled, or waiting in a process.";
    REDELIVERED = Gauge "pillarbox_inbox_redelivered_events"
        "Unacknowledged events that were delivered more than once.";
    OLDEST_AGE = Gauge "pillarbox_inbox_oldest_unhandled_age_seconds"
        "Age of the oldest unhandled event by its time in the stream; 0 if nothing is unhandled, NaN if it is not known.";
    PAUSED = Gauge "pillarbox_inbox_paused"
        "1 while this process handles nothing because the database or the broker is away, 0 otherwise.";
    PAUSED_BY_OPERATOR = Gauge "pillarbox_inbox_paused_by_operator"
        "1 while an operator has paused the consumer, 0 otherwise.";
    PAUSED_TYPES = Gauge "pillarbox_inbox_paused_types"
        "Types of events that operators have paused.";
    PARTITIONS = Gauge "pillarbox_inbox_held_partitions"
        "Partitions that this process reads; 0 without partitions.";
    ACTIVE = Gauge "pillarbox_inbox_active"
        "1 in a process that gets events or would get the next one, 0 in a process that stands by, is paused, or has \
        stopped.";
}

/// Suitable bucket bounds for the histogram, in seconds: from 0.5 ms to 5 minutes. Most exporters need them to be set.
pub const BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 300.0,
];

/// What a process has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// Events handled.
    pub handled: u64,
    /// Events skipped because they had been handled before.
    pub duplicates: u64,
    /// Failed handlings of any fault.
    pub failures: u64,
    /// Events put back to be tried again.
    pub retries: u64,
    /// Events given up.
    pub dead_letters: u64,
}

/// The metrics of one consumer. Cheap to clone; clones share the counts.
#[derive(Clone)]
pub(crate) struct Meter {
    consumer: Label,
    handled: Tally,
    duplicates: Tally,
    failures: Arc<AtomicU64>,
    retries: Tally,
    dead_letters: Arc<AtomicU64>,
    removed: Counter,
    duration: Histogram,
    paused: Gauge,
    paused_by_operator: Gauge,
    paused_types: Gauge,
    active: Gauge,
    partitions: Gauge,
}

/// A counter that can be read.
#[derive(Clone)]
struct Tally {
    counter: Counter,
    total: Arc<AtomicU64>,
}

impl Tally {
    fn add_one(&self) {
        self.counter.increment(1);
        self.total.fetch_add(1, Ordering::Relaxed);
    }
}

impl Meter {
    /// The metrics of the consumer of this name. All but the lag are present from now on.
    pub(crate) fn new(consumer: &str) -> Self {
        describe();
        let consumer = Label::new("consumer", consumer.to_owned());
        let labels = || std::slice::from_ref(&consumer).iter();
        let tally = |metric: Metric| Tally {
            counter: counter!(metric.name, labels()),
            total: Arc::default(),
        };
        let meter = Self {
            handled: tally(HANDLED),
            duplicates: tally(DUPLICATES),
            failures: Arc::default(),
            retries: tally(RETRIES),
            dead_letters: Arc::default(),
            removed: counter!(REMOVED.name, labels()),
            duration: histogram!(DURATION.name, labels()),
            paused: gauge!(PAUSED.name, labels()),
            paused_by_operator: gauge!(PAUSED_BY_OPERATOR.name, labels()),
            paused_types: gauge!(PAUSED_TYPES.name, labels()),
            active: gauge!(ACTIVE.name, labels()),
            partitions: gauge!(PARTITIONS.name, labels()),
            consumer,
        };
        // `increase` does not see the first event of a counter that first appears with that event.
        let faults = [
            Fault::Transient,
            Fault::Permanent,
            Fault::Outage,
            Fault::Environment,
            Fault::Conflict,
        ];
        for fault in faults {
            meter.count(FAILURES, "fault", fault.name(), 0);
        }
        for reason in ["undecodable", "permanent", "attempts", "kills"] {
            meter.count(DEAD_LETTERS, "reason", reason, 0);
        }
        meter.paused.set(0.0);
        meter.paused_by_operator(false, 0);
        meter.active.set(0.0);
        meter.partitions.set(0.0);
        meter
    }

    fn count(&self, metric: Metric, label: &'static str, value: &str, events: u64) {
        let labels = [self.consumer.clone(), Label::new(label, value.to_owned())];
        counter!(metric.name, labels.iter()).increment(events);
    }

    pub(crate) fn handled(&self, took: Duration) {
        self.handled.add_one();
        self.duration.record(took);
    }

    pub(crate) fn duplicate(&self) {
        self.duplicates.add_one();
    }

    pub(crate) fn failed(&self, fault: Fault, took: Duration) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.count(FAILURES, "fault", fault.name(), 1);
        self.duration.record(took);
    }

    pub(crate) fn retry(&self) {
        self.retries.add_one();
    }

    pub(crate) fn dead_letter(&self, reason: &str) {
        self.dead_letters.fetch_add(1, Ordering::Relaxed);
        self.count(DEAD_LETTERS, "reason", reason, 1);
    }

    pub(crate) fn removed(&self, events: u64) {
        self.removed.increment(events);
    }

    pub(crate) fn paused(&self, paused: bool) {
        self.paused.set(flag(paused));
    }

    pub(crate) fn paused_by_operator(&self, paused: bool, types: usize) {
        self.paused_by_operator.set(flag(paused));
        self.paused_types.set(number(types as u64));
    }

    pub(crate) fn active(&self, active: bool) {
        self.active.set(flag(active));
    }

    pub(crate) fn partitions(&self, held: usize) {
        self.partitions.set(number(held as u64));
    }

    /// The gauges of the lag are missing until it is measured, and NaN when it has not been measured for 6 s. A zero
    /// would say that all is well.
    pub(crate) fn lag(
        &self,
        pending: u64,
        ack_pending: u64,
        redelivered: u64,
        oldest_age_seconds: Option<f64>,
    ) {
        let counts = [pending, ack_pending, redelivered].map(number);
        self.lag_gauges(counts, oldest_age_seconds);
    }

    /// The lag is not known any more. Only the age of what this process holds is known, if it holds anything.
    pub(crate) fn lag_unknown(&self, oldest_held: Option<f64>) {
        self.lag_gauges([f64::NAN; 3], oldest_held);
    }

    fn lag_gauges(&self, [pending, ack_pending, redelivered]: [f64; 3], age: Option<f64>) {
        let age = age.unwrap_or(f64::NAN);
        for (metric, value) in [
            (PENDING, pending),
            (ACK_PENDING, ack_pending),
            (REDELIVERED, redelivered),
            (OLDEST_AGE, age),
        ] {
            gauge!(metric.name, std::slice::from_ref(&self.consumer).iter()).set(value);
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        let read = |total: &AtomicU64| total.load(Ordering::Relaxed);
        Totals {
            handled: read(&self.handled.total),
            duplicates: read(&self.duplicates.total),
            failures: read(&self.failures),
            retries: read(&self.retries.total),
            dead_letters: read(&self.dead_letters),
        }
    }
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter").field("consumer", &self.consumer.value()).finish_non_exhaustive()
    }
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn number(value: u64) -> f64 {
    value as f64
}
