//! A consumer's status, for a health endpoint and for the progress of a rebuild.
//!
//! ```text
//!              connected, nobody is active           an event comes
//!   starting ─────────────────────────────► ready ─────────────────────► active
//!       │                                    │ ▲                           │
//!       │          an event goes to another  ▼ │ that one is gone          │ was silent for `takeover`,
//!       └──────────────────────────────► standing by ◄─────────────────────┘ and another got an event
//!         connected, another is active
//!
//!   any but stopped ── the database fails ──► paused ── it answers ──► back
//!   any but stopped ── the broker fails ──► waiting ── connected again ──► ready, or standing by
//!   connected ── an operator pauses it ──► paused by operator ── resumed ──► back
//!   any ── run ends, or is dropped ──► stopped
//! ```
//!
//! The server decides which process is active: it is the one that the server has pinned. With
//! [`HandlingOrder::None`](super::HandlingOrder::None) every process is active, and none stands by. With partitions,
//! every process that reads at least one of them is active.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use pillarbox_inbox::source::{PausedBy, Told};

use super::removed::Gap;
use crate::metrics::{Meter, Totals};
use crate::place::Place;
use crate::places::Places;

/// A consumer's status at one moment. Serialises to one flat object with `state` as a word.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ConsumerStatus {
    /// The consumer's name.
    pub consumer: String,
    /// The stream it reads.
    pub stream: String,
    /// What it is doing.
    #[serde(flatten)]
    pub state: ConsumerState,
    /// The partitions of this process. `None` without partitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<Partitions>,
    /// How far behind the consumer is. `None` until it has been measured.
    pub lag: Option<Lag>,
    /// Settings of the stream that can lose or change events before they are handled, each with what to do about it.
    /// They do not affect [`is_well`](Self::is_well). `None` until the stream's settings are known.
    pub warnings: Option<Vec<String>>,
    /// Events that the stream removed before they were delivered. `None` as long as there is no proof of any.
    pub removed: Option<Removed>,
    /// The types of events that operators have paused, with who did it and why. Their events wait, and the later events
    /// of their keys wait behind them. They do not affect [`is_well`](Self::is_well).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paused_types: Vec<PausedType>,
    /// How many events per second all processes of the consumer may begin together, if an operator has limited it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    /// What this process has done since it started.
    pub totals: Totals,
    /// The last failure: of an event, or of something that events need (the database, the broker, a provider).
    pub last_error: Option<LastError>,
}

impl ConsumerStatus {
    /// Whether the consumer works as it should: it handles events, or would handle the next one, and has the same
    /// number of partitions as the relay. A consumer that an operator has paused is well, because it does as it was
    /// told. Suitable for a readiness probe. A liveness probe should only check for [`ConsumerState::Stopped`], because
    /// a restart does not end an outage.
    pub fn is_well(&self) -> bool {
        let fits = self.partitions.as_ref().is_none_or(|partitions| partitions.sent_with.is_none());
        fits && matches!(
            self.state,
            ConsumerState::Active
                | ConsumerState::Ready
                | ConsumerState::StandingBy
                | ConsumerState::PausedByOperator { .. }
        )
    }

    /// Whether everything that was in the stream at the last measurement is handled. `false` until the first
    /// measurement.
    pub fn is_caught_up(&self) -> bool {
        self.lag.as_ref().is_some_and(|lag| lag.unhandled() == 0)
    }
}

/// What a consumer is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ConsumerState {
    /// It has not found its stream yet.
    Starting,
    /// It gets events.
    Active,
    /// No process is active, because there has been nothing to handle. The next event makes one of the ready processes
    /// active.
    Ready,
    /// Another process is the active one.
    StandingBy,
    /// It handles nothing, because the database or something else that all events need fails. It continues by itself.
    Paused {
        /// What failed.
        reason: String,
    },
    /// It gets nothing from the broker: the broker is away, the durable consumer was changed or paused, or no message
    /// fits its filters. It continues by itself.
    Waiting {
        /// What failed.
        reason: String,
    },
    /// An operator has paused it: `paused by NAME since TIME: NOTE`. Its events wait in the stream. It continues when
    /// an operator resumes it.
    PausedByOperator {
        /// Who paused it, since when, and why.
        reason: String,
    },
    /// `run` has ended.
    Stopped,
}

impl ConsumerState {
    /// The state in a word, as it is serialised.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Ready => "ready",
            Self::StandingBy => "standing-by",
            Self::Paused { .. } => "paused",
            Self::Waiting { .. } => "waiting",
            Self::PausedByOperator { .. } => "paused-by-operator",
            Self::Stopped => "stopped",
        }
    }
}

/// A type of events that an operator has paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PausedType {
    /// The type.
    pub event_type: String,
    /// Who paused it, since when, and why.
    pub reason: String,
}

/// `paused by NAME since TIME: NOTE`, as operators read it.
fn paused_by(pause: &PausedBy) -> String {
    let since = pause.since.replace_nanosecond(0).unwrap_or(pause.since);
    let since = since.format(&Rfc3339).unwrap_or_default();
    match &pause.note {
        Some(note) => format!("paused by {} since {since}: {note}", pause.by),
        None => format!("paused by {} since {since}", pause.by),
    }
}

/// The partitions of one process of a consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Partitions {
    /// The number of partitions of the consumer.
    pub of: u32,
    /// The partitions that this process reads, numbered from 0. A process without any stands by.
    pub held: Vec<u32>,
    /// The number of partitions that some unhandled events were sent with, if it is not this consumer's number. These
    /// events wait, and the later events of their keys wait behind them.
    pub sent_with: Option<u32>,
    /// Subjects that match the consumer's filters and hold unhandled events, but are in none of the partitions, so that
    /// no process reads them. Checked every half minute. At most 16 are listed.
    pub strays: Vec<String>,
}

/// How far behind a consumer is, over all its processes and partitions.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Lag {
    /// Events not delivered yet.
    pub pending: u64,
    /// Events delivered and not acknowledged.
    pub ack_pending: u64,
    /// Events among `ack_pending` that were delivered more than once.
    pub redelivered: u64,
    /// The age in seconds of the oldest unhandled event, by its time in the stream; 0 if nothing is unhandled. It is
    /// the age of the oldest event that this process holds, or that is parked behind a failing one (counted from when
    /// it was parked). If there is no such event, or no order, it is the age of the first message above the ack floor,
    /// which the consumer reads from the server. `None` if something is unhandled and the server does not answer. Over
    /// several processes, take the maximum.
    pub oldest_age_seconds: Option<f64>,
    /// When the lag was measured.
    #[serde(serialize_with = "rfc3339")]
    pub measured_at: OffsetDateTime,
}

impl Lag {
    /// Events that are not handled, or not known to be handled.
    pub fn unhandled(&self) -> u64 {
        self.pending.saturating_add(self.ack_pending)
    }
}

/// Events that the stream removed before they were delivered, by a limit, a purge or by hand, as far as this process
/// has seen. They are not handled unless they are sent again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Removed {
    /// A lower bound of their number since the process started.
    pub events: u64,
    /// The first sequence of the range in the stream in which the most recent of them were.
    pub first_sequence: u64,
    /// The last sequence of that range.
    pub last_sequence: u64,
    /// When this process saw it.
    #[serde(serialize_with = "rfc3339")]
    pub at: OffsetDateTime,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LastError {
    /// When it happened.
    #[serde(serialize_with = "rfc3339")]
    pub at: OffsetDateTime,
    /// The event's id, if an event failed.
    pub event_id: Option<String>,
    /// The error, with its sources.
    pub error: String,
}

/// Gives a consumer's [`ConsumerStatus`] while it runs. Cheap to clone; outlives the consumer.
#[derive(Clone, Debug)]
pub struct Watch {
    meter: Meter,
    view: watch::Receiver<View>,
}

impl Watch {
    /// The status now. This makes no request: the lag is the last one measured, at most a few seconds old while the
    /// broker answers.
    pub fn get(&self) -> ConsumerStatus {
        let view = self.view.borrow().clone();
        ConsumerStatus { state: view.state(), totals: self.meter.totals(), ..view.told }
    }

    /// Waits until the state, the lag or the last error has changed since the last call. `false` once they can no
    /// longer change. Safe to cancel.
    pub async fn changed(&mut self) -> bool {
        self.view.changed().await.is_ok()
    }

    /// Waits until `wanted` returns true for a status, and returns that status. `None` if the consumer is gone before.
    /// Safe to cancel.
    pub async fn until(
        &mut self,
        mut wanted: impl FnMut(&ConsumerStatus) -> bool,
    ) -> Option<ConsumerStatus> {
        loop {
            self.view.borrow_and_update();
            let status = self.get();
            if wanted(&status) {
                return Some(status);
            }
            if !self.changed().await {
                return None;
            }
        }
    }
}

/// What is known of the consumer. Each part is written by the code that knows it.
#[derive(Clone, Debug)]
struct View {
    /// What the status shows as it is. Its state and its totals are not used.
    told: ConsumerStatus,
    broker: Broker,
    /// Whether only the process that is pinned gets events.
    pinned: bool,
    /// The pin that this process had last.
    pin: Option<String>,
    /// The pin of the active process, as far as is known.
    active: Option<String>,
    paused: Option<String>,
    /// Why it is not known what operators have paused.
    unknown: Option<String>,
    /// Who has paused the consumer.
    paused_by: Option<String>,
    /// What keeps events from it although it is connected.
    hindered: Option<Hindrance>,
    stopped: bool,
}

/// What keeps events from a consumer that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hindrance {
    /// Nothing comes.
    Nothing(String),
    /// What arrives is not what should arrive, so it must not be read.
    Differs(String),
}

impl Hindrance {
    fn reason(&self) -> &str {
        let (Self::Nothing(reason) | Self::Differs(reason)) = self;
        reason
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Broker {
    Unknown,
    Away(String),
    Connected,
}

impl View {
    fn state(&self) -> ConsumerState {
        let hindered = self.hindered.as_ref().map(Hindrance::reason);
        match (&self.broker, self.paused.as_ref().or(self.unknown.as_ref())) {
            _ if self.stopped => ConsumerState::Stopped,
            (_, Some(reason)) => ConsumerState::Paused { reason: reason.clone() },
            (Broker::Away(reason), None) => ConsumerState::Waiting { reason: reason.clone() },
            (Broker::Unknown, None) => ConsumerState::Starting,
            (Broker::Connected, None) if hindered.is_some() => {
                ConsumerState::Waiting { reason: hindered.unwrap_or_default().to_owned() }
            }
            (Broker::Connected, None) if self.paused_by.is_some() => {
                ConsumerState::PausedByOperator {
                    reason: self.paused_by.clone().unwrap_or_default(),
                }
            }
            (Broker::Connected, None) if self.reads_none() => ConsumerState::StandingBy,
            (Broker::Connected, None) if !self.pinned => ConsumerState::Active,
            (Broker::Connected, None) => match &self.active {
                None => ConsumerState::Ready,
                active if *active == self.pin => ConsumerState::Active,
                Some(_) => ConsumerState::StandingBy,
            },
        }
    }

    fn reads_none(&self) -> bool {
        self.told.partitions.as_ref().is_some_and(|partitions| partitions.held.is_empty())
    }
}

/// Changes the status. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Reporter {
    pub(crate) meter: Meter,
    view: watch::Sender<View>,
    held: Arc<Places>,
    waits_since: Arc<Mutex<Option<SystemTime>>>,
    /// Durables whose messages could not be looked at: the ack floor, and how many times it was tried there.
    unseen: Arc<Mutex<BTreeMap<String, (u64, u32)>>>,
    resets: Arc<Resets>,
    /// The pins that this process has had.
    pins: Arc<Mutex<HashSet<String>>>,
}

/// How often durables were reset by this process.
#[derive(Debug, Default)]
struct Resets {
    under_way: AtomicU64,
    done: AtomicU64,
}

/// Durables are being reset until this is dropped.
#[derive(Debug)]
pub(super) struct Resetting(Arc<Resets>);

impl Drop for Resetting {
    fn drop(&mut self) {
        self.0.done.fetch_add(1, Ordering::SeqCst);
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How long the metrics show a lag that was not measured again.
const LAG_LASTS: Duration = Duration::from_secs(6);

/// How many pins are remembered.
const MOST_PINS: usize = 4_096;

/// How many failed looks at one ack floor mean that a durable is stuck. Fewer do not, because connections are also lost
/// for other reasons than a message that cannot be parsed.
const UNSEEN_OFTEN: u32 = 3;

impl Reporter {
    pub(crate) fn new(consumer: &str, stream: &str) -> Self {
        let told = ConsumerStatus {
            consumer: consumer.to_owned(),
            stream: stream.to_owned(),
            state: ConsumerState::Starting,
            partitions: None,
            lag: None,
            warnings: None,
            removed: None,
            paused_types: Vec::new(),
            per_second: None,
            totals: Totals::default(),
            last_error: None,
        };
        let view = View {
            told,
            broker: Broker::Unknown,
            pinned: false,
            pin: None,
            active: None,
            paused: None,
            unknown: None,
            paused_by: None,
            hindered: None,
            stopped: false,
        };
        Self {
            meter: Meter::new(consumer),
            view: watch::Sender::new(view),
            held: Arc::default(),
            waits_since: Arc::default(),
            unseen: Arc::default(),
            resets: Arc::default(),
            pins: Arc::default(),
        }
    }

    pub(crate) fn watch(&self) -> Watch {
        Watch { meter: self.meter.clone(), view: self.view.subscribe() }
    }

    fn change(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(|view| {
            change(view);
            let state = view.state();
            self.meter.active(matches!(state, ConsumerState::Active | ConsumerState::Ready));
            self.meter.paused(matches!(
                state,
                ConsumerState::Paused { .. } | ConsumerState::Waiting { .. }
            ));
        });
    }

    /// There is a subscription. With `pinned`, only one process at a time gets events: the one with the pin `active`.
    pub(super) fn connected(&self, pinned: bool, active: Option<String>) {
        self.change(|view| {
            view.broker = Broker::Connected;
            view.pinned = pinned;
            view.active = active;
            view.pin = None;
        });
    }

    /// This process reads these partitions.
    pub(super) fn share(&self, of: u32, held: &BTreeSet<u32>) {
        self.meter.partitions(held.len());
        self.change(|view| {
            let partitions = view.told.partitions.get_or_insert_default();
            partitions.of = of;
            partitions.held = held.iter().copied().collect();
        });
    }

    /// Unhandled events were sent with this many partitions. Returns whether that is news.
    pub(super) fn sent_with(&self, partitions: u32) -> bool {
        let mut before = None;
        self.change(|view| {
            before = view.told.partitions.get_or_insert_default().sent_with.replace(partitions);
        });
        before != Some(partitions)
    }

    /// Nobody reads these subjects.
    pub(super) fn strays(&self, strays: Vec<String>) {
        self.change(|view| view.told.partitions.get_or_insert_default().strays = strays);
    }

    /// There is no subscription, for this reason.
    pub(super) fn away(&self, reason: &str) {
        self.change(|view| view.broker = Broker::Away(reason.to_owned()));
    }

    /// This process gets events, under this pin.
    pub(super) fn active(&self, pin: Option<String>) {
        if let Some(pin) = &pin {
            let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
            if pins.len() >= MOST_PINS {
                pins.clear();
            }
            pins.insert(pin.clone());
        }
        self.change(|view| {
            view.pin.clone_from(&pin);
            view.active = pin;
        });
    }

    /// This process holds an event, read as this partition.
    pub(super) fn holds(&self, place: Place, partition: u32) {
        self.held.add(place, partition);
    }

    /// This process no longer holds the event at this place.
    pub(super) fn let_go(&self, place: &Place) {
        self.held.remove(place);
    }

    /// What this process holds.
    pub(super) fn held(&self) -> &Places {
        &self.held
    }

    /// The pin that this process had last.
    pub(super) fn pin(&self) -> Option<String> {
        self.view.borrow().pin.clone()
    }

    /// A durable was searched for messages that cannot be parsed. `unseen_above`: the ack floor, if the server did not
    /// say whether there are any above it.
    pub(super) fn looked(&self, durable: &str, unseen_above: Option<u64>) {
        let mut unseen = self.unseen.lock().unwrap_or_else(PoisonError::into_inner);
        match (unseen_above, unseen.get_mut(durable)) {
            (None, _) => {
                unseen.remove(durable);
            }
            (Some(floor), Some((at, times))) if *at == floor => *times = times.saturating_add(1),
            (Some(floor), _) => {
                unseen.insert(durable.to_owned(), (floor, 1));
            }
        }
    }

    /// Whether reading of a durable was begun again and again at this ack floor while the server did not say what is
    /// above it.
    pub(super) fn is_stuck_unseen(&self, durable: &str, floor: u64) -> bool {
        let unseen = self.unseen.lock().unwrap_or_else(PoisonError::into_inner);
        unseen.get(durable).is_some_and(|(at, times)| *at == floor && *times >= UNSEEN_OFTEN)
    }

    /// Whether this process had this pin.
    pub(super) fn had_pin(&self, pin: &str) -> bool {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).contains(pin)
    }

    /// A durable is about to be reset.
    pub(super) fn resetting(&self) -> Resetting {
        self.resets.under_way.fetch_add(1, Ordering::SeqCst);
        Resetting(self.resets.clone())
    }

    /// How often durables were reset so far. `None` while one is being reset.
    pub(super) fn resets(&self) -> Option<u64> {
        let idle = self.resets.under_way.load(Ordering::SeqCst) == 0;
        idle.then(|| self.resets.done.load(Ordering::SeqCst))
    }

    /// The settings of the stream by which events can be lost.
    pub(super) fn warned(&self, warnings: Vec<String>) {
        let before = self.view.borrow().told.warnings.clone();
        if before.as_ref() == Some(&warnings) {
            return;
        }
        let consumer = self.view.borrow().told.consumer.clone();
        let before = before.unwrap_or_default();
        for warning in warnings.iter().filter(|warning| !before.contains(warning)) {
            tracing::warn!(consumer, warning, "events can be lost before they are handled");
        }
        if warnings.is_empty() && !before.is_empty() {
            tracing::info!(consumer, "no setting of the stream can lose events any more");
        }
        self.change(|view| view.told.warnings = Some(warnings));
    }

    /// The stream has removed events before they were delivered. Returns how many there are in all.
    pub(super) fn removed(&self, gap: Gap) -> u64 {
        self.meter.removed(gap.events);
        let mut all = 0;
        self.change(|view| {
            let before = view.told.removed.as_ref().map_or(0, |removed| removed.events);
            all = before.saturating_add(gap.events);
            view.told.removed = Some(Removed {
                events: all,
                first_sequence: gap.first,
                last_sequence: gap.last,
                at: OffsetDateTime::now_utc(),
            });
        });
        all
    }

    /// Something on the server keeps events from this consumer, or (`None`) no longer does.
    pub(super) fn hindered(&self, hindrance: Option<Hindrance>) {
        if self.view.borrow().hindered == hindrance {
            return;
        }
        let consumer = self.view.borrow().told.consumer.clone();
        match hindrance.as_ref().map(Hindrance::reason) {
            Some(reason) => {
                tracing::warn!(
                    consumer,
                    reason,
                    "the consumer gets no events; it continues by itself once the reason \
                is gone"
                );
                self.error(None, reason);
            }
            None => tracing::info!(consumer, "the consumer can get events again"),
        }
        self.change(|view| view.hindered = hindrance);
    }

    /// Returns when what arrives is not what should arrive. Safe to cancel.
    pub(super) async fn differs(&self) {
        let mut view = self.view.subscribe();
        let differs = |view: &View| matches!(view.hindered, Some(Hindrance::Differs(_)));
        if view.wait_for(differs).await.is_err() {
            std::future::pending().await
        }
    }

    /// A measured lag, and the pin of the active process, as it was when this process had the pin `before`.
    pub(super) fn measured(&self, lag: Lag, active: Option<String>, before: &Option<String>) {
        self.meter.lag(lag.pending, lag.ack_pending, lag.redelivered, lag.oldest_age_seconds);
        self.change(|view| {
            view.told.lag = Some(lag);
            // Unless this process took over meanwhile, and the answer is from before.
            if view.pin == *before {
                view.active = active;
            }
        });
    }

    /// The server did not answer. If the last measurement is too old, the metrics no longer show it.
    pub(super) fn not_measured(&self) {
        let measured_at = self.view.borrow().told.lag.as_ref().map(|lag| lag.measured_at);
        if measured_at.is_some_and(|at| OffsetDateTime::now_utc() - at > LAG_LASTS) {
            self.meter.lag_unknown(self.oldest_age());
        }
    }

    /// Since when the key has waited that waits the longest among the dead letters behind a failing event.
    pub(super) fn waits_since(&self, since: Option<SystemTime>) {
        *self.waits_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// The age of the oldest event that this process holds, or that waits among the dead letters behind one that fails.
    pub(super) fn oldest_age(&self) -> Option<f64> {
        let held = self.held.oldest();
        let waits = *self.waits_since.lock().unwrap_or_else(PoisonError::into_inner);
        let since = held.into_iter().chain(waits).min()?;
        // Clocks may differ by more than it is old.
        Some(since.elapsed().unwrap_or_default().as_secs_f64())
    }

    pub(super) fn paused(&self, reason: Option<&str>) {
        self.change(|view| view.paused = reason.map(str::to_owned));
    }

    /// It is not known what operators have paused.
    pub(super) fn controls_unknown(&self, reason: &str) {
        self.change(|view| view.unknown = Some(reason.to_owned()));
    }

    /// What operators have paused and limited.
    pub(super) fn controlled(&self, told: Told) {
        let mut paused = None;
        let mut types = Vec::new();
        for pause in told.pauses {
            let reason = paused_by(&pause);
            match pause.event_type {
                all if all.is_empty() => paused = Some(reason),
                event_type => types.push(PausedType { event_type, reason }),
            }
        }
        self.meter.paused_by_operator(paused.is_some(), types.len());
        let is_news = {
            let view = self.view.borrow();
            view.unknown.is_some()
                || view.paused_by != paused
                || view.told.paused_types != types
                || view.told.per_second != told.per_second
        };
        if is_news {
            self.change(|view| {
                view.unknown = None;
                view.paused_by = paused;
                view.told.paused_types = types;
                view.told.per_second = told.per_second;
            });
        }
    }

    pub(super) fn error(&self, event_id: Option<&str>, error: &str) {
        let error = LastError {
            at: OffsetDateTime::now_utc(),
            event_id: event_id.map(str::to_owned),
            error: error.to_owned(),
        };
        self.change(|view| view.told.last_error = Some(error));
    }

    /// Makes the status `stopped` when the guard is dropped.
    pub(super) fn stopped_on_drop(&self) -> StoppedOnDrop {
        self.change(|view| view.stopped = false);
        StoppedOnDrop(self.clone())
    }
}

/// See [`Reporter::stopped_on_drop`].
#[derive(Debug)]
pub(super) struct StoppedOnDrop(Reporter);

impl Drop for StoppedOnDrop {
    fn drop(&mut self) {
        self.0.held.clear();
        let measured = self.0.view.borrow().told.lag.is_some();
        if measured {
            self.0.meter.lag_unknown(None);
        }
        self.0.change(|view| view.stopped = true);
    }
}

fn rfc3339<S: Serializer>(time: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.format(&Rfc3339).map_err(serde::ser::Error::custom)?)
}
