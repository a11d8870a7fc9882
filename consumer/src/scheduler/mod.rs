//! The heart of the consumer: what it holds, and what happens next. It does no I/O. Events go in, with the time, and
//! [decisions](Decision) come out.
//!
//! ```text
//!   delivered ──► held ──► waits in its lane ──► runs ──► leaves: acknowledged, dead letter, back to the server
//!   parked ─────►            ▲    │               │
//!                            │    │ part of a partition that this process gives up: forgotten
//!                            └────┴───────────────┘ failed, or not run: comes back
//! ```
//!
//! What it promises:
//!
//! - At most one event of each key runs at a time, or in a batch one stretch of them, and a key's events run in order.
//! - What is held stays held until it leaves: nothing is forgotten.
//! - No more messages are held than the subscription, or [`has_room`](Scheduler::has_room), allows.
//! - A key that fails delays no other key.
//! - An event that runs alone runs with nothing beside it.
//! - A pause ends when the probe succeeds. Nothing starts before.
//!
//! The driver (`driver.rs`) calls it like this, and does what it decides:
//!
//! ```text
//!   ┌─► start ──► decisions ──► wait for what comes first: ──► tell the scheduler ─┐
//!   │                           a message, an end, an answer, `wake_at`            │
//!   └──────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! | file | concept |
//! |---|---|
//! | `lanes.rs` | order per key |
//! | `held.rs` | an event, and how it may run |
//! | `starting.rs` | what runs next: by itself, in a batch, alone |
//! | `settling.rs` | what follows when it has run: [`Disposition`] |
//! | `decision.rs` | what goes in, and what comes out |
//! | `deliveries.rs` | messages and their acknowledgements |
//! | `crowding.rs` | which failing keys are parked |
//! | `pages.rs` | parked events that this process has taken |
//! | `control.rs` | what operators have paused and limited |
//! | `pause.rs` | pausing while nothing can be handled |
//! | `silence.rs` | when to ask whether the database is reachable |
//! | `skipping.rs` | looking up many events that may be handled already |

mod content;
mod control;
mod crowding;
mod decision;
mod deliveries;
mod disposition;
mod held;
mod lanes;
mod pages;
mod pause;
mod settling;
mod silence;
mod skipping;
mod starting;
#[cfg(test)]
mod tests;

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use content::{Content, Undecodable};
pub(crate) use control::{Controls, Piece};
pub(crate) use crowding::Table;
pub(crate) use decision::{Decision, Delivered, Leftover, News, Ran, Work};
pub(crate) use deliveries::Acknowledgement;
pub(crate) use disposition::{Disposition, FULL_WAIT, Parking};
pub(crate) use held::{Held, Letter, Origin, Page};
pub(crate) use lanes::Lane;

use crate::config::HandlingOrder;
use control::Control;
use crowding::Crowding;
use deliveries::Deliveries;
use lanes::Lanes;
use pages::Pages;
use pause::Pause;
use silence::Silence;
use skipping::Skipping;

/// How often the driver looks for connections that it keeps and nobody needs.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// What a scheduler is bounded by.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) order: HandlingOrder,
    /// How many handlers run at the same time.
    pub(crate) concurrency: usize,
    /// How many messages may be held.
    pub(crate) prefetch: usize,
    /// How many messages of a partition the server sends before it gets an acknowledgement.
    pub(crate) places: usize,
    /// `None` if events are handled one by one.
    pub(crate) batch: Option<BatchLimits>,
    /// How long the server waits for a sign of life before it delivers a message again.
    pub(crate) ack_wait: Duration,
}

/// How events are put together in batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimits {
    /// The most events in a batch.
    pub(crate) size: usize,
    /// How long the first event waits for others.
    pub(crate) linger: Duration,
}

/// What runs.
///
/// ```text
///                    nothing runs, and it is the turn of an event that runs alone
///   beside others ────────────────────────────────────────────────────────────────► alone
///     │  ▲    ▲                                                                       │
///     └──┘    └───────────────────────────── it ends ─────────────────────────────────┘
///   one starts or ends
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Running {
    /// This many, beside each other.
    BesideOthers(usize),
    /// One event, with nothing beside it.
    Alone,
}

/// See the [module](self). `A` is what acknowledges a delivery.
#[derive(Debug)]
pub(crate) struct Scheduler<A> {
    limits: Limits,
    lanes: Lanes<Held>,
    running: Running,
    /// Events taken out of their lanes. Nothing else starts before them, and each runs with nothing beside it.
    alone: VecDeque<(Lane, Held)>,
    /// The messages of the stream that are held, running or not.
    deliveries: Deliveries<A>,
    /// The partitions that this process no longer reads. Their events that run may end, and no other event of theirs
    /// begins.
    given_up: HashSet<u32>,
    /// When a batch that is not full may start.
    batch_at: Instant,
    crowding: Crowding,
    pages: Pages,
    pause: Pause,
    control: Control,
    silence: Silence,
    skipping: Skipping,
    report_at: Instant,
    tidy_at: Instant,
    /// Whether nothing starts any more.
    stops: bool,
    decisions: VecDeque<Decision>,
}

impl<A> Scheduler<A> {
    pub(crate) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            lanes: Lanes::new(),
            running: Running::BesideOthers(0),
            alone: VecDeque::new(),
            deliveries: Deliveries::new(),
            given_up: HashSet::new(),
            batch_at: now,
            crowding: Crowding::new(limits.places, now),
            pages: Pages::new(limits.concurrency, now),
            pause: Pause::new(),
            control: Control::new(now),
            silence: Silence::new(now),
            skipping: Skipping::new(),
            report_at: now,
            tidy_at: now + TIDY_EVERY,
            stops: false,
            decisions: VecDeque::new(),
            limits,
        }
    }

    /// The next thing to do, if there is one.
    pub(crate) fn decision(&mut self) -> Option<Decision> {
        self.decisions.pop_front()
    }

    /// Whether another message may be asked for. If keys are kept in order, each subscription limits itself to its own
    /// places.
    pub(crate) fn has_room(&self) -> bool {
        self.limits.order.keeps_keys() || self.deliveries.len() < self.limits.prefetch
    }

    /// A message was delivered. Returns whether it is new: one that is held already is only delivered again.
    pub(crate) fn delivered(&mut self, message: Delivered<A>, now: Instant) -> bool {
        let Delivered { place, partition, again, misfit, in_batches, content, acker } = message;
        let is_new = self.deliveries.delivered(place.clone(), partition, acker);
        if is_new {
            match self.limits.batch {
                // It does not wait for others.
                Some(_) if !in_batches => self.batch_at = now,
                Some(batch) if self.lanes.waiting() == 0 => self.batch_at = now + batch.linger,
                _ => {}
            }
            let lane = content.lane(&place, self.limits.order.keeps_keys());
            self.lanes.push(
                lane,
                Held::from_stream(place, partition, again, misfit, in_batches, content),
            );
            if self.lanes.any_resting() {
                self.crowding.grew(now);
            }
        }
        is_new
    }

    /// The delivery of this partition's messages was interrupted, and starts again. Earlier deliveries are not
    /// acknowledged any more.
    pub(crate) fn interrupted(&mut self, partition: u32) {
        self.deliveries.interrupted(partition);
    }

    /// This process reads these partitions from now on.
    pub(crate) fn takes(&mut self, partitions: &[u32]) {
        for partition in partitions {
            self.given_up.remove(partition);
            self.interrupted(*partition);
        }
    }

    /// This process no longer reads these partitions. Their events that wait are forgotten, because another process
    /// gets them. Those that run may end.
    pub(crate) fn gives_up(&mut self, partitions: &[u32]) {
        self.given_up.extend(partitions);
        let given_up = &self.given_up;
        let mut waiting = self.lanes.remove(|held| held.is_of(given_up));
        for (lane, held) in std::mem::take(&mut self.alone) {
            if held.is_of(&self.given_up) {
                self.lanes.done(lane);
                waiting.push(held);
            } else {
                self.alone.push_back((lane, held));
            }
        }
        waiting.iter().for_each(|held| self.forget(held));
    }

    /// Whether this process still holds a message of this partition.
    pub(crate) fn holds_any_of(&self, partition: u32) -> bool {
        self.deliveries.holds_any_of(partition)
    }

    /// Whether an acknowledgement is due.
    pub(crate) fn any_acknowledgement_due(&self) -> bool {
        self.deliveries.any_due()
    }

    /// The next acknowledgement that is due. It stays due until [`acknowledged`](Self::acknowledged) is called, so
    /// the driver may be cancelled in between.
    pub(crate) fn acknowledgement_due(&mut self) -> Option<(&A, Acknowledgement)> {
        self.deliveries.next_due()
    }

    /// The acknowledgement that was due next was sent.
    pub(crate) fn acknowledged(&mut self) {
        self.deliveries.told();
    }

    /// The server can be reached: reports every message that is held as in progress.
    pub(crate) fn report_progress(&mut self) {
        self.deliveries.report_progress();
    }

    /// These parked events were taken from the table. `has_seen_all`: whether the look reached the end of the table.
    pub(crate) fn found(&mut self, pages: Vec<Page>, has_seen_all: bool, now: Instant) {
        self.silence.broken(now);
        for page in self.pages.found(pages, has_seen_all, now) {
            let (first, until) = (page.first(), page.until);
            for letter in page.letters {
                self.lanes.push(Lane::Page(first), Held::from_letter(letter, first, until));
            }
        }
    }

    /// Something that all events need has failed.
    pub(crate) fn environment_failed(&mut self, error: String, now: Instant) {
        let begins = self.pause.begin(now);
        self.tell(News::Paused { error, begins });
    }

    /// What operators have paused and limited. `None`: it is not known yet, so nothing begins.
    pub(crate) fn control(&mut self, controls: Option<Controls>, now: Instant) {
        match controls {
            Some(controls) => self.control.set(controls, now),
            None => self.control.forget(),
        }
    }

    /// The database was asked for a piece of the rate.
    pub(crate) fn granted(&mut self, piece: Option<Piece>, now: Instant) {
        self.control.granted(piece, now);
    }

    /// The probe has ended.
    pub(crate) fn probed(&mut self, well: bool, now: Instant) {
        if let Some(lasted) = self.pause.probed(well, now) {
            self.silence.broken(now);
            self.tell(News::Resumed(lasted));
        }
    }

    /// The database was asked whether it is reachable. `away`: why it is not.
    pub(crate) fn asked(&mut self, away: Option<String>, now: Instant) {
        self.silence.asked(now);
        if let Some(error) = away.filter(|_| self.waits_for_database()) {
            self.tell(News::NoDatabase(error.clone()));
            self.environment_failed(error, now);
        }
    }

    /// When to call [`wake`](Self::wake), unless something else happens before.
    pub(crate) fn wake_at(&self, now: Instant) -> Instant {
        let batch_at = (self.lanes.waiting() > 0 && self.lingers(now)).then_some(self.batch_at);
        let times = [
            self.lanes.next_due(),
            batch_at,
            self.crowds_at(),
            self.look_at(),
            self.ask_at(),
            self.pause.probe_at(),
            self.control.wake_at(now).filter(|_| self.may_start() && self.waits_for_rate()),
            Some(self.tidy_at),
        ];
        times.into_iter().flatten().fold(self.report_at, Instant::min)
    }

    /// Decides what is due now.
    pub(crate) fn wake(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        self.lanes.wake(now);
        if is_due(self.ask_at()) {
            self.silence.asking();
            self.decisions.push_back(Decision::AskDatabase);
        }
        if is_due(self.look_at()) {
            self.begins(now);
            let most = self.pages.looking(now);
            self.decisions.push_back(Decision::LookForParked(most));
        }
        if is_due(self.pause.probe_at()) {
            self.pause.probing();
            self.decisions.push_back(Decision::Probe);
        }
        if self.tidy_at <= now {
            self.tidy_at = now + TIDY_EVERY;
            self.decisions.push_back(Decision::Tidy);
        }
        if self.report_at <= now {
            self.report_at = now + self.limits.ack_wait / 3;
            self.decisions.push_back(Decision::ReportProgress);
        }
    }

    /// Starts nothing more. What runs may end.
    pub(crate) fn stop(&mut self) {
        self.stops = true;
    }

    /// Ends. Nothing runs any more.
    pub(crate) fn end(mut self) -> Leftover<A> {
        let waiting = self.lanes.remove(|held| held.letter().is_some());
        let alone = self.alone.into_iter().map(|(_, held)| held);
        let letters = waiting.into_iter().chain(alone).filter_map(|held| held.letter()).collect();
        let (acknowledgements, held) = self.deliveries.end();
        Leftover { letters, acknowledgements, held }
    }

    fn tell(&mut self, news: News) {
        self.decisions.push_back(Decision::Tell(news));
    }

    /// When to look for parked events.
    fn look_at(&self) -> Option<Instant> {
        self.pages
            .look_at()
            .filter(|_| self.pause.is_open() && self.control.is_open() && !self.stops)
    }

    /// When to ask whether the database is reachable.
    fn ask_at(&self) -> Option<Instant> {
        self.silence.ask_at().filter(|_| self.pause.is_open() && self.waits_for_database())
    }

    /// Something that needs the database is about to begin.
    fn begins(&mut self, now: Instant) {
        if !self.waits_for_database() {
            self.silence.broken(now);
        }
    }

    fn waits_for_database(&self) -> bool {
        self.running != Running::BesideOthers(0) || self.pages.is_looking()
    }

    /// Stops holding an event, and tells the server nothing.
    fn forget(&mut self, held: &Held) {
        if let Origin::Stream { place, .. } = &held.origin {
            self.deliveries.forget(place);
            self.tell(News::Released(place.clone()));
        }
    }
}
