//! The cursor as a state machine: writers and a relay, in every order.

use std::fmt;

use pillarbox_relay::cursor::{Cursor, Snapshot, Xid};
use stateright::{Model, Property};

use super::postgres::{Carried, Fate, Postgres, Row, name};
use super::relay::Relay;
use super::rule::Rule;

/// How much there is of everything.
#[derive(Clone, Debug)]
pub struct Outbox {
    pub rule: Rule,
    /// Transactions that take an id, each with any number of rows.
    pub transactions: usize,
    /// Rows in all of them together.
    pub rows: usize,
    pub keys: u8,
    /// The sizes of pages, each time any of these.
    pub page_sizes: &'static [usize],
    /// How often the relay may die.
    pub crashes: u8,
    /// Rows that somebody loads, at any time and at positions of any kind.
    pub foreign: usize,
    /// The ids that these carry.
    pub carried: &'static [Carried],
    /// Whether the outbox came from another cluster, with two rows and a cursor that has passed the first of them.
    pub moved: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub postgres: Postgres,
    pub relay: Relay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Begin,
    Insert { transaction: usize, key: u8 },
    Load { transaction: usize, carried: Xid, below: bool },
    End { transaction: usize, fate: Fate },
    Spend,
    Read { size: usize, save: bool },
    BeginSweep,
    EndSweep { save: bool },
    Crash { kept: usize },
}

/// The ids that restored rows carry: one that the old cluster's snapshot saw, and one that it did not.
const RESTORED: [Xid; 2] = [10, 20];

pub const LOST: &str = "no committed row is lost";
pub const SNAPSHOT: &str = "what the cursor's snapshot sees has been shipped";
pub const SHIPPED_RIGHT: &str =
    "nothing uncommitted, nothing twice without a crash, each key in order";

impl Model for Outbox {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut postgres = Postgres::new(self.foreign);
        let relay = if self.moved {
            let positions = postgres.restore(&RESTORED);
            let shipped = &positions[..1];
            let old: Snapshot = "15:15:".parse().unwrap();
            let old = Cursor::start("old").close(&old, shipped.last().copied(), Some(i64::MAX));
            let cursor = old.moved_to("", postgres.snapshot());
            Relay::at(cursor, shipped.iter().copied().collect(), self.crashes)
        } else {
            Relay::new(self.crashes)
        };
        vec![State { postgres, relay }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let State { postgres, relay } = state;
        if postgres.begun() < self.transactions + usize::from(self.moved) {
            actions.push(Action::Begin);
        }
        for (transaction, rows) in postgres.running() {
            if postgres.written() < self.rows {
                let free = postgres.free_keys(transaction, self.keys);
                actions.extend(free.map(|key| Action::Insert { transaction, key }));
            }
            if postgres.loaded() < self.foreign {
                for below in [false, true] {
                    let loadable = postgres.loadable(transaction, below, self.carried);
                    actions.extend(loadable.into_iter().map(|carried| Action::Load {
                        transaction,
                        carried,
                        below,
                    }));
                }
            }
            // One without a row ends as if it were rolled back.
            if rows > 0 {
                actions.push(Action::End { transaction, fate: Fate::Committed });
            }
            actions.push(Action::End { transaction, fate: Fate::RolledBack });
        }
        if relay.must_spend(self.rule) {
            actions.push(Action::Spend);
        } else {
            let saves: &[bool] = if relay.at_stake().is_some() { &[false, true] } else { &[false] };
            for &size in self.page_sizes {
                actions.extend(saves.iter().map(|&save| Action::Read { size, save }));
            }
        }
        if self.sweeps() {
            let (begin, end) = relay.may_sweep();
            if begin {
                actions.push(Action::BeginSweep);
            }
            if end {
                let saves: &[bool] =
                    if relay.at_stake().is_some() { &[false, true] } else { &[false] };
                actions.extend(saves.iter().map(|&save| Action::EndSweep { save }));
            }
        }
        if let Some(unsaved) = relay.at_stake() {
            actions.extend((0..=unsaved).map(|kept| Action::Crash { kept }));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let State { postgres, relay } = &mut state;
        match action {
            Action::Begin => postgres.begin(),
            Action::Insert { transaction, key } => postgres.insert(transaction, key),
            Action::Load { transaction, carried, below } => {
                postgres.load(transaction, carried, below);
            }
            Action::End { transaction, fate } => {
                postgres.end(transaction, fate);
                if self.rule != Rule::RolledBackSeen {
                    postgres.vacuum();
                }
            }
            Action::Spend => relay.spend(postgres, self.rule),
            Action::Read { size, save } => {
                if !relay.read(postgres, self.rule, size, save) {
                    return None;
                }
            }
            Action::BeginSweep => relay.begin_sweep(),
            Action::EndSweep { save } => relay.end_sweep(postgres, self.rule, save),
            Action::Crash { kept } => relay.crash(kept),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(LOST, |model: &Self, state: &State| {
                let at_rest = state.postgres.running().next().is_none()
                    && state.relay.is_at_rest(&state.postgres, model.rule, model.sweeps());
                !at_rest || state.unshipped().next().is_none()
            }),
            Property::always(SNAPSHOT, |_: &Self, state: &State| {
                let seen = &state.relay.cursor().snapshot;
                // Where the sequence gives no position, the scan does not look: a sweep does, in time.
                let unshipped = |(xid, row, fate): (Xid, Row, Fate)| {
                    fate == Fate::Committed
                        && Rule::Shipped.seen(seen, xid, row)
                        && !state.postgres.is_free(row.position)
                        && !state.relay.has_shipped(row.position)
                };
                !state.postgres.rows().any(unshipped)
            }),
            Property::always(SHIPPED_RIGHT, |_: &Self, state: &State| {
                state.relay.fault().is_none()
            }),
            // What the model must be able to show, if it is to prove anything.
            Property::sometimes(
                "everything is written, ended and shipped",
                |model: &Self, state: &State| {
                    state.postgres.written() == model.rows
                        && state.postgres.committed().count() == model.all_rows()
                        && state.relay.is_at_rest(&state.postgres, model.rule, model.sweeps())
                },
            ),
            Property::sometimes(
                "a window ends while a transaction runs unlisted",
                |_: &Self, state: &State| {
                    state.postgres.runs_unlisted()
                        && state.relay.cursor().high > 0
                        && !state.relay.is_within()
                },
            ),
            Property::sometimes("a row waits below the floor", |_: &Self, state: &State| {
                let floor = state.relay.cursor().floor;
                state.unshipped().any(|position| position <= floor)
            }),
        ]
    }
}

impl Outbox {
    /// Without loads there is nothing for a sweep to find, and it could make good for a wrong rule.
    fn sweeps(&self) -> bool {
        self.foreign > 0 && self.rule != Rule::NoSweep
    }

    fn all_rows(&self) -> usize {
        self.rows + self.foreign + if self.moved { RESTORED.len() } else { 0 }
    }
}

impl State {
    /// The committed rows that the broker does not have.
    pub fn unshipped(&self) -> impl Iterator<Item = i64> {
        let rows = self.postgres.committed().map(|row| row.position);
        rows.filter(|position| !self.relay.has_shipped(*position))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unshipped: Vec<_> = self.unshipped().collect();
        writeln!(f, "{}", self.postgres)?;
        writeln!(f, "{}", self.relay)?;
        write!(f, "committed and not shipped: {unshipped:?}")
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin => f.write_str("the next transaction takes an id"),
            Self::Insert { transaction, key } => {
                write!(f, "{} writes a row of key {key}", name(*transaction))
            }
            Self::Load { transaction, carried, below } => {
                let place = if *below { "below all positions" } else { "at the next position" };
                write!(f, "{} loads a row {place}, carrying id {carried}", name(*transaction))
            }
            Self::End { transaction, fate: Fate::RolledBack } => {
                write!(f, "{} is rolled back", name(*transaction))
            }
            Self::End { transaction, .. } => write!(f, "{} commits", name(*transaction)),
            Self::Spend => f.write_str("the relay spends an id"),
            Self::Read { size, save } => {
                let save = if *save { ", and saves its cursor" } else { "" };
                write!(f, "the relay reads a page of up to {size} and ships it{save}")
            }
            Self::BeginSweep => f.write_str("a sweep begins"),
            Self::EndSweep { save } => {
                let save = if *save { ", and the cursor is saved" } else { "" };
                write!(f, "the sweep has looked at all and ends{save}")
            }
            Self::Crash { kept } => {
                write!(f, "the relay dies; of what it had not saved, {kept} were stored")
            }
        }
    }
}
