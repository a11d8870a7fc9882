//! What runs next.

use std::time::Duration;

use tokio::time::Instant;

use super::control::Control;
use super::crowding::Failing;
use super::disposition::FULL_WAIT;
use super::held::{Held, Origin};
use super::lanes::Lane;
use super::{Decision, Running, Scheduler, Work};

/// The most events of a key that one statement parks.
const MOST_PARKED: usize = 200;

/// About how many bytes of payloads one statement parks.
const MOST_PARKED_BYTES: usize = 4 << 20;

/// How long an event of a paused type stays in the table before it is looked at again, unless the type is resumed
/// earlier: see the crate's `control.rs`.
const PAUSED_WAIT: Duration = Duration::from_secs(3_600);

/// What an event that was taken from its lane does next.
enum Turn {
    /// It runs with nothing beside it.
    Alone,
    /// It moves into the table, behind others of its key.
    Parks,
    /// Its type is paused: it moves into the table, or back to it.
    Pauses,
    /// Its type is paused, and it must not be parked: it waits here.
    Waits,
    /// It runs by itself.
    ByItself,
    /// It runs in a batch of at most this many events.
    InBatch(usize),
}

impl<A> Scheduler<A> {
    /// Decides what starts now.
    pub(crate) fn start(&mut self, now: Instant) {
        self.park_what_crowds(now);
        while self.may_start() {
            if self.waits_for_rate() && self.control.room(now) == 0 {
                if let Some(events) = self.control.ask(now) {
                    self.decisions.push_back(Decision::TakeRate(events));
                }
                return;
            }
            if self.alone.is_empty() {
                if !self.start_next(now) {
                    return;
                }
            } else if self.running == Running::BesideOthers(0)
                && let Some((lane, event)) = self.alone.pop_front()
            {
                self.run(Work::One { lane, event }, now);
                self.running = Running::Alone;
            } else {
                return;
            }
        }
    }

    /// Whether one more handler may run.
    pub(super) fn may_start(&self) -> bool {
        let is_free = match self.running {
            Running::BesideOthers(running) => running < self.limits.concurrency,
            Running::Alone => false,
        };
        is_free && self.pause.is_open() && self.control.is_open() && !self.stops
    }

    /// Whether anything is ready that counts against the rate.
    pub(super) fn waits_for_rate(&self) -> bool {
        self.lanes.any_ready() || !self.alone.is_empty()
    }

    pub(super) fn run(&mut self, work: Work, now: Instant) {
        self.begins(now);
        self.control.spend(match &work {
            Work::One { .. } => 1,
            Work::Batch(lanes) => lanes.iter().map(|(_, events)| events.len()).sum(),
            Work::LookUp(_) | Work::Park { .. } | Work::Postpone { .. } => 0,
        });
        if let Running::BesideOthers(running) = &mut self.running {
            *running += 1;
        }
        self.decisions.push_back(Decision::Run(work));
    }

    /// Starts what is next. Returns whether there may be more to start.
    fn start_next(&mut self, now: Instant) -> bool {
        if let Some(more) = self.look_up(now) {
            return more;
        }
        if self.lingers(now) {
            return false;
        }
        let (mut batch, mut events, mut of_letters) = (Vec::new(), 0, None);
        while let Some((lane, held)) = self.lanes.take() {
            if self.must_be_looked_up(&held) {
                self.lanes.put_back(lane, held);
                break;
            }
            match self.turn(&lane, &held, now) {
                // Parked events are released by the transaction that handles them, so they have batches of their own.
                Turn::InBatch(most)
                    if *of_letters.get_or_insert(held.is_letter()) == held.is_letter() =>
                {
                    let mut together = vec![held];
                    while events + together.len() < most
                        && let Some(next) = self.lanes.take_also(&lane, |held| {
                            held.fits_batch() && !is_paused(&self.control, held)
                        })
                    {
                        together.push(next);
                    }
                    events += together.len();
                    batch.push((lane, together));
                    if events < most {
                        continue;
                    }
                }
                Turn::Alone if batch.is_empty() => {
                    self.alone.push_back((lane, held));
                    return true;
                }
                Turn::Parks if batch.is_empty() => self.start_parking(lane, held, None, now),
                Turn::Pauses if batch.is_empty() && held.is_letter() => {
                    self.run(Work::Postpone { lane, event: held, wait: PAUSED_WAIT }, now);
                }
                Turn::Pauses if batch.is_empty() => self.start_pausing(lane, held, now),
                Turn::Waits if batch.is_empty() => {
                    self.lanes.retry(lane, [held], now + FULL_WAIT);
                }
                Turn::ByItself if batch.is_empty() => {
                    self.run(Work::One { lane, event: held }, now)
                }
                // It has its turn once the batch has started.
                _ => self.lanes.put_back(lane, held),
            }
            break;
        }
        if batch.is_empty() {
            return self.lanes.any_ready();
        }
        self.run(Work::Batch(batch), now);
        true
    }

    fn turn(&self, lane: &Lane, held: &Held, now: Instant) -> Turn {
        if is_paused(&self.control, held) {
            let to_table = held.is_letter() || held.may_be_parked();
            return if to_table { Turn::Pauses } else { Turn::Waits };
        }
        if held.is_alone() {
            return Turn::Alone;
        }
        if self.crowding.is_waiting(lane) && held.may_be_parked() {
            return Turn::Parks;
        }
        match self.limits.batch {
            Some(batch) if held.fits_batch() => {
                Turn::InBatch(batch.size.min(self.control.room(now)))
            }
            _ => Turn::ByItself,
        }
    }

    /// Whether there are too few events for a batch, and others may come.
    pub(super) fn lingers(&self, now: Instant) -> bool {
        let too_few = |size| self.lanes.waiting() < size && now < self.batch_at;
        self.limits.batch.is_some_and(|batch| too_few(batch.size))
    }

    /// Parks a failing key that takes the others' room, if there is one.
    fn park_what_crowds(&mut self, now: Instant) {
        if self.crowds_at().is_none_or(|at| at > now) {
            return;
        }
        let failing = self.lanes.resting().filter_map(|(lane, held)| {
            let first = held.front().filter(|first| first.has_failed_and_may_be_parked())?;
            let Origin::Stream { partition, .. } = first.origin else { return None };
            matches!(lane, Lane::Key(_)).then_some(Failing { lane, partition, held: held.len() })
        });
        let Some(lane) = self.crowding.next(now, failing).cloned() else { return };
        if let Some(at) = self.lanes.take_resting(&lane)
            && let Some(first) = self.lanes.take_also(&lane, |_| true)
        {
            self.start_parking(lane, first, Some(at.saturating_duration_since(now)), now);
        }
    }

    /// When to check whether a failing key takes the others' room. `None` while none could be parked.
    pub(super) fn crowds_at(&self) -> Option<Instant> {
        self.crowding.look_at().filter(|_| self.may_start() && self.alone.is_empty())
    }

    /// Parks an event of a paused type, and those that wait behind it.
    fn start_pausing(&mut self, lane: Lane, first: Held, now: Instant) {
        let events = self.take_to_park(&lane, first);
        let wait = Some(PAUSED_WAIT);
        self.run(Work::Park { lane, events, wait, paused: true }, now);
    }

    /// Parks an event, and those that wait behind it.
    fn start_parking(&mut self, lane: Lane, first: Held, wait: Option<Duration>, now: Instant) {
        let events = self.take_to_park(&lane, first);
        self.run(Work::Park { lane, events, wait, paused: false }, now);
    }

    fn take_to_park(&mut self, lane: &Lane, first: Held) -> Vec<Held> {
        let mut bytes = first.content.bytes();
        let mut events = vec![first];
        while events.len() < MOST_PARKED
            && bytes < MOST_PARKED_BYTES
            && let Some(next) = self.lanes.take_also(lane, Held::may_be_parked)
        {
            bytes = bytes.saturating_add(next.content.bytes());
            events.push(next);
        }
        events
    }
}

/// Whether an operator has paused events of this type.
fn is_paused(control: &Control, held: &Held) -> bool {
    held.content.event_type().is_some_and(|event_type| control.is_paused(event_type))
}
