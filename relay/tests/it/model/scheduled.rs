//! Scheduled events as a state machine: releases by relays that take the lease over from each other, and transactions
//! that cancel.
//!
//! A release is one call of `release_scheduled`, step by step: it looks at the lease, locks the relay's row, looks
//! again, reads the database's clock, locks one row that is due, moves it, and commits. Its relay may be dead by then,
//! and the call may fail at any step. Each step of a transaction may come at any later time.

use std::fmt;

use stateright::{Model, Property};

/// The most of anything here.
const MANY: usize = 2;
/// When each event is due.
const DUE: [u8; MANY] = [1, 2];

/// How much there is of everything.
#[derive(Clone, Debug)]
pub struct Releases {
    pub rule: ReleaseRule,
    /// Scheduled events, at most two.
    pub events: usize,
    /// Transactions that cancel, each any one event.
    pub cancels: usize,
    /// How often the lease may be taken.
    pub epochs: u8,
    /// How often a release may begin.
    pub releases: u8,
    /// Whether the database's clock may jump back once.
    pub jumps: bool,
}

/// How events are released and cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReleaseRule {
    /// As it is shipped.
    Shipped,
    /// A release looks at the lease once, before it waits for the relay's row.
    LeaseSeenEarlier,
    /// A release does not lock the relay's row.
    LeaseNotLocked,
    /// A release reads a row and writes it to the outbox without locking it. What it deletes is not counted.
    NotLocked,
    /// The row is deleted in a transaction of its own, after the insert.
    DeletedLater,
    /// A relay asks for what is due by a clock of its own, which is a tick ahead.
    OwnClock,
    /// A cancel that finds the row locked answers `false`, and does not wait.
    CancelDoesNotWait,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The database's clock.
    now: u8,
    jumped: bool,
    epoch: u8,
    begun: u8,
    /// The scheduled events that are there, as far as it is committed.
    there: [bool; MANY],
    /// How often each is in the outbox, as far as it is committed.
    shipped: [u8; MANY],
    releases: Vec<Release>,
    cancels: Vec<Cancel>,
    fault: Option<Fault>,
}

/// A call of `release_scheduled` in progress.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Release {
    epoch: u8,
    at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum At {
    /// It has seen that its epoch is in force, and waits for the relay's row.
    SawLease,
    /// It has the relay's row, or does not need it.
    HasLease,
    /// It has chosen this event.
    Chose(usize),
    /// It has inserted the event, and committed that; the row is still to be deleted.
    Inserted(usize),
}

/// A transaction that cancels an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Cancel {
    NotYet,
    /// It waits for a release that has locked the row.
    Waits(usize),
    /// It has deleted the row, which answers `true`, and has not committed yet.
    Deleted(usize),
    /// It answered `true`, and has committed.
    Did(usize),
    /// It answered `false`.
    DidNot(usize),
    /// It was rolled back after `true`.
    RolledBack,
}

/// What must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// An event came before it was due.
    Early,
    /// A release took effect under an epoch that was not in force.
    FormerReleased,
    /// A cancel answered `false` for an event that was still there.
    FalseTooSoon,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Tick,
    JumpBack,
    TakeOver,
    Begin { epoch: u8 },
    Lock(usize),
    Choose(usize),
    Commit(usize),
    Delete(usize),
    Fail(usize),
    Cancel { who: usize, event: usize },
    CommitCancel(usize),
    RollBackCancel(usize),
}

pub const ONCE: &str = "no event comes into the outbox twice";
pub const NOT_EARLY: &str = "no event comes before it is due, by the database's clock";
pub const FENCED: &str = "a release under a former epoch changes nothing";
pub const TRUE_IS_GONE: &str = "a cancelled event is not in the outbox";
pub const FALSE_HAS_LEFT: &str = "a cancel answers false only when the event has left";

impl Model for Releases {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            now: 0,
            jumped: false,
            epoch: 1,
            begun: 0,
            there: std::array::from_fn(|event| event < self.events),
            shipped: [0; MANY],
            releases: Vec::new(),
            cancels: vec![Cancel::NotYet; self.cancels],
            fault: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if usize::from(state.now) < MANY {
            actions.push(Action::Tick);
        }
        if self.jumps && !state.jumped && state.now > 0 {
            actions.push(Action::JumpBack);
        }
        // The row of the relay is locked by who releases.
        if state.epoch < self.epochs && !state.relay_row_is_locked(self.rule) {
            actions.push(Action::TakeOver);
        }
        if state.begun < self.releases {
            // A former leader may not know yet that it is one.
            actions.extend((1..=state.epoch).map(|epoch| Action::Begin { epoch }));
        }
        for (who, release) in state.releases.iter().enumerate() {
            actions.push(Action::Fail(who));
            match release.at {
                At::SawLease if !state.relay_row_is_locked(self.rule) => {
                    actions.push(Action::Lock(who));
                }
                At::SawLease => {}
                At::HasLease => actions.push(Action::Choose(who)),
                At::Chose(_) => actions.push(Action::Commit(who)),
                At::Inserted(_) => actions.push(Action::Delete(who)),
            }
        }
        for (who, cancel) in state.cancels.iter().enumerate() {
            match cancel {
                Cancel::NotYet => {
                    let events = 0..self.events;
                    actions.extend(events.map(|event| Action::Cancel { who, event }));
                }
                Cancel::Deleted(_) => {
                    actions.extend([Action::CommitCancel(who), Action::RollBackCancel(who)]);
                }
                _ => {}
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Tick => state.now += 1,
            Action::JumpBack => {
                state.now -= 1;
                state.jumped = true;
            }
            Action::TakeOver => state.epoch += 1,
            Action::Begin { epoch } => {
                state.begun += 1;
                // `leads := exists (…)`, before anything is locked.
                if epoch == state.epoch {
                    state.releases.push(Release { epoch, at: At::SawLease });
                }
            }
            Action::Lock(who) => {
                let release = &mut state.releases[who];
                let looks_again = self.rule != ReleaseRule::LeaseSeenEarlier;
                if looks_again && release.epoch != state.epoch {
                    state.releases.remove(who);
                } else {
                    release.at = At::HasLease;
                }
            }
            Action::Choose(who) => self.choose(&mut state, who),
            Action::Commit(who) => self.commit(&mut state, who),
            Action::Delete(who) => {
                if let At::Inserted(event) = state.releases.remove(who).at {
                    state.there[event] = false;
                }
            }
            Action::Fail(who) => {
                let release = state.releases.remove(who);
                if let At::Chose(event) = release.at {
                    state.unlock(event);
                }
            }
            Action::Cancel { who, event } => {
                state.cancels[who] = match state.is_locked(event, self.rule) {
                    _ if !state.there[event] => Cancel::DidNot(event),
                    true if self.rule == ReleaseRule::CancelDoesNotWait => {
                        state.fault = Some(Fault::FalseTooSoon);
                        Cancel::DidNot(event)
                    }
                    true => Cancel::Waits(event),
                    false => Cancel::Deleted(event),
                };
            }
            Action::CommitCancel(who) => {
                if let Cancel::Deleted(event) = state.cancels[who] {
                    state.cancels[who] = Cancel::Did(event);
                    state.there[event] = false;
                    state.unlock(event);
                }
            }
            Action::RollBackCancel(who) => {
                if let Cancel::Deleted(event) = state.cancels[who] {
                    state.cancels[who] = Cancel::RolledBack;
                    state.unlock(event);
                }
            }
        }
        // Which release is which does not matter, nor which cancel.
        state.releases.sort_unstable();
        state.cancels.sort_unstable();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONCE, |_: &Self, state: &State| {
                state.shipped.iter().all(|times| *times < 2)
            }),
            Property::always(NOT_EARLY, |_: &Self, state: &State| {
                state.fault != Some(Fault::Early)
            }),
            Property::always(FENCED, |_: &Self, state: &State| {
                state.fault != Some(Fault::FormerReleased)
            }),
            Property::always(TRUE_IS_GONE, |_: &Self, state: &State| {
                (0..MANY).all(|event| !state.was_cancelled(event) || state.shipped[event] == 0)
            }),
            Property::always(FALSE_HAS_LEFT, |_: &Self, state: &State| {
                let has_left =
                    |event: usize| state.shipped[event] > 0 || state.was_cancelled(event);
                let answered = state.cancels.iter().filter_map(|cancel| match cancel {
                    Cancel::DidNot(event) => Some(*event),
                    _ => None,
                });
                state.fault != Some(Fault::FalseTooSoon) && answered.into_iter().all(has_left)
            }),
            Property::sometimes("all events leave", |model: &Self, state: &State| {
                state.shipped.iter().take(model.events).all(|times| *times == 1)
            }),
            Property::sometimes("a cancel waits for a release", |_: &Self, state: &State| {
                state.cancels.iter().any(|cancel| matches!(cancel, Cancel::Waits(_)))
            }),
            Property::sometimes("a cancel comes too late", |_: &Self, state: &State| {
                (0..MANY).any(|event| {
                    state.shipped[event] > 0 && state.cancels.contains(&Cancel::DidNot(event))
                })
            }),
            Property::sometimes(
                "a former leader waits for the relay's row",
                |_: &Self, state: &State| {
                    let former = |release: &Release| release.epoch < state.epoch;
                    state.releases.iter().any(former)
                },
            ),
        ]
    }
}

impl Releases {
    /// `select … where due_at <= moment order by due_at limit 1 for update skip locked`.
    fn choose(&self, state: &mut State, who: usize) {
        let ahead = u8::from(self.rule == ReleaseRule::OwnClock);
        let due = |event: &usize| DUE[*event] <= state.now + ahead;
        let free = |event: &usize| {
            state.there[*event]
                && !state.is_held(*event)
                && (self.rule == ReleaseRule::NotLocked || !state.is_locked(*event, self.rule))
        };
        match (0..self.events).filter(due).find(free) {
            Some(event) => {
                // The insert and the delete see what the clock said now.
                if DUE[event] > state.now {
                    state.fault = Some(Fault::Early);
                }
                state.releases[who].at = At::Chose(event);
            }
            None => drop(state.releases.remove(who)),
        }
    }

    fn commit(&self, state: &mut State, who: usize) {
        let release = state.releases.remove(who);
        let At::Chose(event) = release.at else { return };
        if release.epoch != state.epoch {
            state.fault = Some(Fault::FormerReleased);
        }
        state.shipped[event] += 1;
        if self.rule == ReleaseRule::DeletedLater {
            state.releases.push(Release { at: At::Inserted(event), ..release });
            return;
        }
        state.there[event] = false;
        state.unlock(event);
    }
}

impl State {
    fn relay_row_is_locked(&self, rule: ReleaseRule) -> bool {
        let has = |release: &Release| !matches!(release.at, At::SawLease | At::Inserted(_));
        rule != ReleaseRule::LeaseNotLocked && self.releases.iter().any(has)
    }

    /// Whether a cancel has deleted the row and not committed that.
    fn is_held(&self, event: usize) -> bool {
        self.cancels.contains(&Cancel::Deleted(event))
    }

    /// Whether somebody else has locked the row of this event.
    fn is_locked(&self, event: usize, rule: ReleaseRule) -> bool {
        let by_release = self.releases.iter().any(|release| release.at == At::Chose(event));
        (by_release && rule != ReleaseRule::NotLocked) || self.is_held(event)
    }

    fn was_cancelled(&self, event: usize) -> bool {
        self.cancels.contains(&Cancel::Did(event))
    }

    /// The lock of a row is free. One of those that wait for it gets it, and looks whether the row is still there.
    fn unlock(&mut self, event: usize) {
        let waits = |cancel: &&mut Cancel| **cancel == Cancel::Waits(event);
        if self.there[event] {
            if let Some(next) = self.cancels.iter_mut().find(waits) {
                *next = Cancel::Deleted(event);
            }
        } else {
            self.cancels
                .iter_mut()
                .filter(waits)
                .for_each(|cancel| *cancel = Cancel::DidNot(event));
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { now, epoch, there, shipped, .. } = self;
        writeln!(f, "the clock says {now}; epoch {epoch}; due at {DUE:?}")?;
        write!(f, "scheduled: {there:?}; in the outbox: {shipped:?}")?;
        for release in &self.releases {
            write!(f, "\na release of epoch {}: {:?}", release.epoch, release.at)?;
        }
        for cancel in &self.cancels {
            write!(f, "\na cancel: {cancel:?}")?;
        }
        match self.fault {
            Some(fault) => write!(f, "\n{fault:?}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.write_str("time passes"),
            Self::JumpBack => f.write_str("the database's clock jumps back"),
            Self::TakeOver => f.write_str("another relay takes the lease"),
            Self::Begin { epoch } => write!(f, "the relay of epoch {epoch} begins a release"),
            Self::Lock(who) => write!(f, "release {who} gets the relay's row"),
            Self::Choose(who) => write!(f, "release {who} looks for what is due"),
            Self::Commit(who) => write!(f, "release {who} commits"),
            Self::Delete(who) => write!(f, "release {who} deletes the row"),
            Self::Fail(who) => write!(f, "release {who} fails"),
            Self::Cancel { who, event } => write!(f, "cancel {who} asks for event {event}"),
            Self::CommitCancel(who) => write!(f, "cancel {who} commits"),
            Self::RollBackCancel(who) => write!(f, "cancel {who} is rolled back"),
        }
    }
}
