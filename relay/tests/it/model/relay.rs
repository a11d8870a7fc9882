//! The relay's way through the outbox: `source/mod.rs` with its SQL, on the cursor that it ships with.
//!
//! [`Cursor`] and [`Snapshot`] are the relay's own. What `first_page.sql`, `next_page.sql` and `late.sql` answer is
//! computed from the modelled database.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use pillarbox_relay::cursor::{Cursor, FloorMark, Snapshot, Xid};

use super::postgres::{Fate, Position, Postgres, Row};
use super::rule::Rule;

/// A relay that reads, ships and saves, and the broker it ships to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relay {
    place: Place,
    /// What the table `pillarbox.relay` holds.
    saved: Arc<Cursor>,
    /// The rows that the broker has.
    shipped: BTreeSet<Position>,
    /// Those that were shipped behind the saved cursor, in order, and whether it was a repeat. Of these a crash may
    /// find any number shipped.
    unsaved: Vec<(Position, bool)>,
    /// Shipped rows that a crash lets come again.
    again: BTreeSet<Position>,
    sweep: Option<Arc<Sweep>>,
    crashes_left: u8,
    fault: Option<Fault>,
}

/// Where the relay is in its reading: the states of `Source`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Between {
        cursor: Arc<Cursor>,
        spent: bool,
        /// What a rule that looks too early has seen.
        looked: Option<Arc<Snapshot>>,
    },
    Within {
        base: Arc<Cursor>,
        window: Arc<Snapshot>,
        position: Position,
    },
}

/// A sweep under way: `source/sweep.rs`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sweep {
    /// The cursor's when it began.
    begun: FloorMark,
    against: Vec<FloorMark>,
}

/// What a relay must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It shipped a row whose transaction has not committed.
    Uncommitted(Position),
    /// It shipped a row a second time, and not because of a crash. A loaded one may come again while a transaction runs
    /// that is older than the one that loaded it.
    Repeated(Position),
    /// It shipped a row before an earlier one of its key.
    OutOfOrder(Position),
}

impl Relay {
    /// One that has never run. `crashes`: how often it may die.
    pub fn new(crashes: u8) -> Self {
        Self::at(Cursor::start(""), BTreeSet::new(), crashes)
    }

    /// One that has a cursor already, and has shipped these.
    pub fn at(cursor: Cursor, shipped: BTreeSet<Position>, crashes: u8) -> Self {
        let start = Arc::new(cursor);
        Self {
            place: Place::at(&start),
            saved: start,
            shipped,
            unsaved: Vec::new(),
            again: BTreeSet::new(),
            sweep: None,
            crashes_left: crashes,
            fault: None,
        }
    }

    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    pub fn has_shipped(&self, position: Position) -> bool {
        self.shipped.contains(&position)
    }

    /// Whether it must spend an id before it can read on.
    pub fn must_spend(&self, rule: Rule) -> bool {
        matches!(&self.place, Place::Between { spent: false, .. }) && rule != Rule::NoIdSpent
    }

    /// How many rows a crash may find shipped or not, if it may crash.
    pub fn at_stake(&self) -> Option<usize> {
        (self.crashes_left > 0).then_some(self.unsaved.len())
    }

    /// Whether it is in the middle of a window.
    pub fn is_within(&self) -> bool {
        matches!(self.place, Place::Within { .. })
    }

    /// The cursor in memory.
    pub fn cursor(&self) -> &Cursor {
        match &self.place {
            Place::Between { cursor, .. } => cursor,
            Place::Within { base, .. } => base,
        }
    }

    /// It spends an id of its own.
    pub fn spend(&mut self, postgres: &mut Postgres, rule: Rule) {
        postgres.spend_id();
        if let Place::Between { spent, looked, .. } = &mut self.place {
            *spent = true;
            *looked = rule.looks_early().then(|| Arc::new(postgres.snapshot()));
        }
    }

    /// It reads a page of up to `size` rows and ships them. With `save` it saves the cursor that they lead to; when it
    /// does so does not matter, as only a crash can tell. Answers whether anything came of it.
    pub fn read(&mut self, postgres: &Postgres, rule: Rule, size: usize, save: bool) -> bool {
        let before = self.place.clone();
        let (base, window, rows, last) = match &before {
            Place::Within { base, window, position } => {
                let rows = next_page(postgres, rule, base, window, *position, size);
                (base.clone(), window.clone(), rows, Some(*position))
            }
            Place::Between { cursor, looked, .. } => {
                let now = postgres.snapshot();
                let seen = looked.as_deref();
                let rows = first_page(postgres, rule, cursor, &now, seen, size);
                let window = match (rule, seen) {
                    (Rule::SnapshotOfAnotherStatement, Some(earlier)) => earlier.clone(),
                    _ => now,
                };
                if rows.is_empty() {
                    self.found_nothing(cursor, &window, rule);
                    return self.place != before;
                }
                (cursor.clone(), Arc::new(window), rows, None)
            }
        };
        for (xid, row) in &rows {
            self.ship(postgres, *xid, *row, &base.snapshot);
        }
        let full = rows.len() >= size;
        let last = rows.last().map(|(_, row)| row.position).or(last);
        let after = match last {
            Some(position) if full => base.within(&window, position),
            _ => rule.close(&base, &window, last),
        };
        self.go_on(after, save);
        true
    }

    fn go_on(&mut self, after: Cursor, save: bool) {
        let after = Arc::new(after);
        self.place = Place::at(&after);
        if save {
            self.saved = after;
            self.unsaved.clear();
        }
        self.forget_what_no_crash_needs();
    }

    /// Whether a sweep may begin, and whether one may end.
    pub fn may_sweep(&self) -> (bool, bool) {
        match &self.place {
            Place::Between { cursor, .. } => {
                (self.sweep.is_none() && !cursor.marks.is_empty(), self.sweep.is_some())
            }
            Place::Within { .. } => (false, false),
        }
    }

    /// A sweep begins: it remembers where the scan is.
    pub fn begin_sweep(&mut self) {
        let cursor = self.cursor();
        let sweep = Sweep { begun: cursor.mark(), against: cursor.marks.clone() };
        self.sweep = Some(Arc::new(sweep));
    }

    /// It has gone through the table, ships what it found, and ends.
    pub fn end_sweep(&mut self, postgres: &Postgres, rule: Rule, save: bool) {
        let Some(sweep) = self.sweep.take() else {
            return;
        };
        let cursor = self.cursor().clone();
        for (mark, xid, row) in late(postgres, rule, &cursor, &sweep.against) {
            self.ship(postgres, xid, row, &mark.snapshot);
        }
        self.go_on(cursor.swept(sweep.begun.clone()), save);
    }

    fn found_nothing(&mut self, cursor: &Arc<Cursor>, now: &Snapshot, rule: Rule) {
        let (cursor, spent) = if cursor.floor < cursor.high {
            (rule.close(cursor, now, None), false)
        } else {
            let mut cursor = Cursor::clone(cursor);
            cursor.forget_finished(now);
            (cursor, true)
        };
        self.place = Place::Between { cursor: Arc::new(cursor), spent, looked: None };
    }

    /// `base`: the snapshot that it was new to.
    fn ship(&mut self, postgres: &Postgres, xid: Xid, row: Row, base: &Snapshot) {
        let Row { position, key, carried } = row;
        let committed = || postgres.committed().filter(|other| other.key == key);
        if !committed().any(|other| other.position == position) {
            self.fault = Some(Fault::Uncommitted(position));
        }
        if committed().any(|other| other.position < position && !self.has_shipped(other.position)) {
            self.fault = Some(Fault::OutOfOrder(position));
        }
        let repeat = !self.shipped.insert(position);
        let may_come_again = carried.is_some() && xid >= base.xmin();
        if repeat && !self.again.remove(&position) && !may_come_again {
            self.fault = Some(Fault::Repeated(position));
        }
        self.unsaved.push((position, repeat));
    }

    /// It dies, and starts again from the saved cursor. Of the rows behind it the broker has the first `kept`.
    pub fn crash(&mut self, kept: usize) {
        for (at, (position, repeat)) in std::mem::take(&mut self.unsaved).into_iter().enumerate() {
            if repeat || at < kept {
                self.again.insert(position);
            } else {
                self.shipped.remove(&position);
            }
        }
        self.place = Place::at(&self.saved);
        self.sweep = None;
        self.crashes_left -= 1;
        self.forget_what_no_crash_needs();
    }

    /// Without a crash to come, nobody asks what was saved. It would only tell states apart that are alike.
    fn forget_what_no_crash_needs(&mut self) {
        if self.crashes_left == 0 {
            self.saved = Arc::new(Cursor::start(""));
            self.unsaved.clear();
        }
    }

    /// Whether it would find nothing more, however often it looked, if nobody wrote any more.
    pub fn is_at_rest(&self, postgres: &Postgres, rule: Rule, sweeps: bool) -> bool {
        let Place::Between { cursor, spent: true, looked: None } = &self.place else {
            return false;
        };
        let now = postgres.snapshot();
        cursor.floor == cursor.high
            && first_page(postgres, rule, cursor, &now, None, 1).is_empty()
            && self.sweep.is_none()
            && (!sweeps || late(postgres, rule, cursor, &cursor.marks).is_empty())
    }
}

impl fmt::Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cursor { snapshot, high, floor, in_flight, .. } = self.cursor();
        write!(f, "the relay stands at S {snapshot} P {high} F {floor} in flight {in_flight:?}")?;
        if let Place::Within { window, position, .. } = &self.place {
            write!(f, ", in the window up to {window} at position {position}")?;
        }
        match self.fault {
            Some(fault) => write!(f, "; {fault:?}"),
            None => Ok(()),
        }
    }
}

impl Place {
    /// As `Source::open` begins.
    fn at(cursor: &Arc<Cursor>) -> Self {
        match &cursor.window {
            Some(window) => Self::Within {
                base: Arc::new(Cursor { window: None, ..Cursor::clone(cursor) }),
                window: Arc::new(window.snapshot.clone()),
                position: window.position,
            },
            None => Self::Between { cursor: cursor.clone(), spent: false, looked: None },
        }
    }
}

/// `first_page.sql`.
fn first_page(
    postgres: &Postgres,
    rule: Rule,
    cursor: &Cursor,
    now: &Snapshot,
    earlier: Option<&Snapshot>,
    size: usize,
) -> Vec<(Xid, Row)> {
    let judge = match rule {
        Rule::FinishedJudgedEarlier => earlier.unwrap_or(now),
        _ => now,
    };
    let finished = cursor.in_flight.iter().filter(|(xid, _)| judge.has_finished(**xid));
    let start = finished.map(|(_, low)| *low).fold(cursor.floor, Position::min);
    let new = |xid, row: Row| {
        row.position > start
            && !rule.surely_seen(&cursor.snapshot, xid, row)
            && !rule.covered(cursor, xid, row)
    };
    match rule {
        Rule::PositionAboveLast => {
            page(postgres, rule, size, now, |_, row| row.position > cursor.high)
        }
        _ => page(postgres, rule, size, now, new),
    }
}

/// `next_page.sql`.
fn next_page(
    postgres: &Postgres,
    rule: Rule,
    cursor: &Cursor,
    window: &Snapshot,
    position: Position,
    size: usize,
) -> Vec<(Xid, Row)> {
    page(postgres, rule, size, window, |xid, row| {
        row.position > position
            && !rule.surely_seen(&cursor.snapshot, xid, row)
            && rule.seen(window, xid, row)
            && !rule.covered(cursor, xid, row)
    })
}

/// `late.sql`, for one mark after the other: the rows that are new at positions up to their floors.
fn late<'m>(
    postgres: &Postgres,
    rule: Rule,
    cursor: &Cursor,
    against: &'m [FloorMark],
) -> Vec<(&'m FloorMark, Xid, Row)> {
    let (mut found, mut behind) = (Vec::new(), 0);
    for mark in against {
        let late = |xid: Xid, row: Row| {
            let in_flight = mark.in_flight.get(&row.carried.unwrap_or(xid));
            row.position > behind
                && row.position <= mark.floor
                && !rule.seen(&mark.snapshot, xid, row)
                && !in_flight.is_some_and(|low| rule.left_to_scan(*low, xid, row))
                && !rule.covered(cursor, xid, row)
        };
        let rows = page(postgres, rule, usize::MAX, &postgres.snapshot(), late);
        found.extend(rows.into_iter().map(|(xid, row)| (mark, xid, row)));
        behind = mark.floor;
    }
    found
}

/// The first rows that a statement sees and wants, in the order of their positions.
fn page(
    postgres: &Postgres,
    rule: Rule,
    size: usize,
    now: &Snapshot,
    wanted: impl Fn(Xid, Row) -> bool,
) -> Vec<(Xid, Row)> {
    let sees = |xid, fate| match rule {
        // `pg_visible_in_snapshot` does not ask whether a transaction committed; the table's rows do.
        Rule::RolledBackSeen => now.has_finished(xid),
        _ => fate == Fate::Committed,
    };
    let mut rows: Vec<(Xid, Row)> = postgres
        .rows()
        .filter(|(xid, row, fate)| sees(*xid, *fate) && wanted(*xid, *row))
        .map(|(xid, row, _)| (xid, row))
        .collect();
    if rule != Rule::OrderedById {
        rows.sort_by_key(|(_, row)| row.position);
    }
    rows.truncate(size);
    rows
}
