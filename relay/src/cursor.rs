//! The relay's place in the outbox: a Postgres snapshot.
//!
//! The relay never marks rows. It remembers a snapshot `S`. What `S` can see has been shipped. New is what is visible
//! now and was not visible in `S`, in the order of `position`. A transaction that commits late is simply not in `S`
//! yet, whatever positions its rows have. So a transaction that stays open delays only itself. This is the idea of
//! PgQ's ticks, without the ticker.
//!
//! The alternatives fail. `position > last` loses rows that commit late. Waiting for `txid < pg_snapshot_xmin()` stops
//! everything behind one long transaction. Ordering by `txid` reverses a key when a transaction takes its id early and
//! its row lock late. Marking or deleting each row leaves a dead version of it, which every reader must step over.
//! # Where to start reading
//!
//! Rows are read in windows. A window lies between two snapshots, `S` and `S'`. It is read by an index scan over
//! `position`, which must start low enough to find every row that `S` could not see:
//!
//! - A transaction that was in progress in `S` is in its `xip` list. For each of them the cursor holds a `low`; the
//!   transaction has no rows at or below it.
//! - A transaction that is *not* in the list may also have been running: `xmax` is the latest *completed* id plus one,
//!   so a transaction at or above it may have begun before `S` was taken. This is what the **floor** is for, and why it
//!   lags by a window.
//!
//! After the relay has taken `S` and before it takes `S'`, it consumes a transaction id `c` of its own.
//! [`Cursor::close`] must not be called without that. `c` has completed by then, so every id at or above `xmax(S')` is
//! greater than `c`, and its transaction began after `S` was taken. A row's position is drawn after its transaction's
//! id (see the column order in the outbox's migration), hence after `S`, hence above the largest position `P` that was
//! visible in `S`. So after the window up to `S'`, the floor is the `P` of the window before it, not its own. With its
//! own `P`, rows are lost (61 of 19,487 in an experiment).
//!
//! Positions come from a sequence, so the floor must never be above what the sequence had reached *before* `S'` was
//! taken. A row that somebody loaded at a position far above the sequence must not lift the floor above positions that
//! writers are still to draw. So [`Cursor::close`] takes the value of the sequence.
//!
//! # Rows of another cluster
//!
//! A dump that was loaded, a subscription, or plain SQL can put rows here whose `txid` comes from another cluster. Such
//! an id says nothing. It may be lower than this cluster's ids, so that every snapshot sees it, or higher. The system
//! column `xmin` is right for every row: it is the id under which somebody put the row *here*. It has 32 bits, and
//! under a savepoint it is the id of a subtransaction, which snapshots do not list. So the rule in
//! `source/visibility.rs` uses `txid` where the two agree, and both where they differ.
//!
//! Rows are never rewritten. If the cursor itself comes from another cluster, as after a dump and a restore, it starts
//! again from nothing, and keeps what the old cursor had shipped as [`Before`].
//!
//! # Another table, and positions that come again
//!
//! All of this is about one table and one sequence, so the cursor holds their oids ([`TableId`]), and the same
//! statement that reads a page and its snapshot tells whether they are still the same. A table that was swapped in by
//! renaming is read from its start. If the sequence was restarted or set back, everything is looked at once more, and
//! what the last sweep's snapshot sees is not shipped again. That is right only with a snapshot of before: a later one
//! may see rows at low positions that no scan has met. So the page that finds it out is dropped, and its window with
//! it. To ask before a page is read does not do: a `truncate … restart identity` and new rows may come in between.
//!
//! # Rows at positions that the scan has left behind
//!
//! Rows can also appear at positions that the scan has already passed. A sweep over the whole table looks for them
//! again and again, with the help of the [marks](FloorMark) that closed windows leave.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A transaction id, including its epoch (`xid8`).
pub type Xid = u64;

/// A Postgres snapshot, as `pg_snapshot` prints it: `xmin:xmax:xip,xip,…`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Snapshot {
    xmin: Xid,
    xmax: Xid,
    in_progress: Vec<Xid>,
}

impl Snapshot {
    /// The snapshot that sees nothing.
    pub fn nothing() -> Self {
        Self { xmin: 1, xmax: 1, in_progress: Vec::new() }
    }

    /// The oldest transaction that may still have been running. All older ones had finished.
    pub fn xmin(&self) -> Xid {
        self.xmin
    }

    /// The transactions that it lists as in progress. Others at or above [`xmax`](Self::xmax) may also be in progress.
    pub fn in_progress(&self) -> &[Xid] {
        &self.in_progress
    }

    /// Whether it sees everything that the other one sees.
    pub fn covers(&self, other: &Self) -> bool {
        self.xmax >= other.xmax && !self.in_progress.iter().any(|xid| other.has_finished(*xid))
    }

    /// The first id that it knows nothing about: the latest completed id, plus one.
    pub fn xmax(&self) -> Xid {
        self.xmax
    }

    /// Whether this transaction had finished, committed or not.
    pub fn has_finished(&self, xid: Xid) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }
}

/// The error for a text that is not a snapshot.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a Postgres snapshot (xmin:xmax:xip,…)")]
pub struct SnapshotError(String);

impl FromStr for Snapshot {
    type Err = SnapshotError;

    fn from_str(text: &str) -> Result<Self, SnapshotError> {
        let parse = || {
            let mut parts = text.split(':');
            let xmin: Xid = parts.next()?.parse().ok()?;
            let xmax: Xid = parts.next()?.parse().ok()?;
            let list = parts.next()?;
            let in_progress = if list.is_empty() {
                Vec::new()
            } else {
                list.split(',').map(|xid| xid.parse().ok()).collect::<Option<Vec<Xid>>>()?
            };
            let sound = parts.next().is_none()
                && 0 < xmin
                && xmin <= xmax
                && in_progress.is_sorted_by(|a, b| a < b)
                && in_progress.iter().all(|xid| (xmin..xmax).contains(xid));
            sound.then_some(Self { xmin, xmax, in_progress })
        };
        parse().ok_or_else(|| SnapshotError(text.chars().take(100).collect()))
    }
}

impl TryFrom<String> for Snapshot {
    type Error = SnapshotError;

    fn try_from(text: String) -> Result<Self, SnapshotError> {
        text.parse()
    }
}

impl From<Snapshot> for String {
    fn from(snapshot: Snapshot) -> Self {
        snapshot.to_string()
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (i, xid) in self.in_progress.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{xid}")?;
        }
        Ok(())
    }
}

/// The relay's place. It is stored in the column `cursor` of `pillarbox.relay`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cursor {
    /// The cluster that the transaction ids belong to.
    pub system_identifier: String,
    /// `S`: what it sees has been shipped.
    pub snapshot: Snapshot,
    /// `P`: the largest position shipped, but not above what the sequence had reached.
    pub high: i64,
    /// The largest position shipped.
    #[serde(default)]
    pub top: i64,
    /// `F`: no transaction that `S` does not know of has rows at or below it. It is the `high` of the window before.
    pub floor: i64,
    /// For each transaction in progress in `S`, a position at or below which it has no rows.
    #[serde(default)]
    pub in_flight: BTreeMap<Xid, i64>,
    /// The window under way, if there is one, and how far it has been shipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// If the outbox came from another cluster, what had been shipped there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    /// The marks that sweeps compare rows with, in the order of their floors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<FloorMark>,
    /// The table whose positions these are. `None`: no row has been read yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<TableId>,
    /// The table that was the outbox before another one took its name, as an oid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_table: Option<i64>,
    /// What was committed when the relay last went back because the broker had lost something. Until `S` sees all of
    /// it, events are shipped again. `None`: they all have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_until: Option<Snapshot>,
}

/// Which table is the outbox, and which sequence gives out its positions, as oids. A position and a snapshot say
/// nothing of another table, and positions come again when their sequence begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableId {
    /// The table.
    pub relation: i64,
    /// The sequence. `None`: positions are given out in another way.
    pub sequence: Option<i64>,
    /// The sequence's file. It has another one after each restart.
    pub file: Option<i64>,
}

/// What had been shipped in another cluster.
///
/// It covers a row if all of this holds: the row was here when the other cluster was noticed; it was put here under
/// another id than its `txid`; and one of the old snapshots could see it, at a position that was shipped by then.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Before {
    /// A snapshot of this cluster, taken when the change of cluster was noticed.
    pub found: Snapshot,
    /// Snapshots of other clusters, each with the position up to which its rows had been shipped.
    pub shipped: Vec<(Snapshot, i64)>,
}

/// At most this many other clusters are remembered. Rows of older ones are shipped again.
const CLUSTERS_REMEMBERED: usize = 16;

/// At most this many marks are kept. If there are more floors during one sweep, the last mark moves.
const MARKS: usize = 6;

/// A floor, and the snapshot that the scan had when it passed the positions up to that floor. It tells a sweep what is
/// new there.
///
/// If `snapshot` cannot see a row at or below `floor`, the row was put there later, and not through the sequence. Rows
/// of running transactions that drew their positions from the sequence lie above the floor, or the transaction is
/// listed with the position above which its rows lie. If there are several marks, the one with the lowest floor at or
/// above a position applies to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FloorMark {
    /// The cursor's snapshot.
    pub snapshot: Snapshot,
    /// The cursor's floor.
    pub floor: i64,
    /// The transactions that the cursor listed as in flight, each with a position at or below which the sequence gave
    /// it none. A row that it has there nevertheless is late, whoever put it there.
    #[serde(default)]
    pub in_flight: BTreeMap<Xid, i64>,
}

/// A window under way: its end, and how far it has been shipped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// `S'`: the window holds what `S'` sees and `S` does not.
    pub snapshot: Snapshot,
    /// All rows of the window up to this position have been shipped.
    pub position: i64,
}

impl Cursor {
    /// The cursor before the first row, in the cluster with this system identifier.
    pub fn start(system_identifier: impl Into<String>) -> Self {
        Self {
            system_identifier: system_identifier.into(),
            snapshot: Snapshot::nothing(),
            high: 0,
            top: 0,
            floor: 0,
            in_flight: BTreeMap::new(),
            window: None,
            before: None,
            marks: Vec::new(),
            table: None,
            left_table: None,
            again_until: None,
        }
    }

    /// The first cursor in the cluster with this system identifier, for an outbox that came from another cluster.
    /// `found` is a snapshot of the new cluster.
    pub fn moved_to(&self, system_identifier: impl Into<String>, found: Snapshot) -> Self {
        let mut shipped =
            self.before.as_ref().map_or_else(Vec::new, |before| before.shipped.clone());
        shipped.push((self.snapshot.clone(), self.high));
        if let Some(window) = &self.window {
            shipped.push((window.snapshot.clone(), window.position));
        }
        shipped.drain(..shipped.len().saturating_sub(CLUSTERS_REMEMBERED));
        Self { before: Some(Before { found, shipped }), ..Self::start(system_identifier) }
    }

    /// The cursor after the sequence was set back to `sequence`. The relay looks at everything once more, but does not
    /// ship again what had been shipped when the last sweep began.
    ///
    /// What was shipped since may be shipped again. The cursor's own snapshot must not be used here, because it may see
    /// a late row that no sweep has found.
    #[must_use]
    pub fn set_back(&self, sequence: i64) -> Self {
        let swept = self.marks.first().cloned().unwrap_or_else(|| self.mark());
        Self {
            snapshot: swept.snapshot,
            high: self.high.min(sequence),
            top: self.top.min(sequence),
            floor: 0,
            in_flight: swept.in_flight.keys().map(|xid| (*xid, 0)).collect(),
            window: None,
            marks: Vec::new(),
            ..self.clone()
        }
    }

    /// The cursor when `found` is the outbox's table, and its sequence has reached `sequence`.
    ///
    /// - Another table is read from its start: neither a position nor the snapshot tells what of it was shipped. The
    ///   snapshot may see rows that were put there before it became the outbox.
    /// - After a restart of the sequence, everything is looked at once more.
    #[must_use]
    pub fn in_table(&self, found: TableId, sequence: Option<i64>) -> Self {
        let cursor = match self.table {
            Some(table) if table.relation != found.relation => Self {
                left_table: Some(table.relation),
                ..Self::start(self.system_identifier.clone())
            },
            Some(table) if table != found => self.set_back(sequence.unwrap_or(0)),
            _ => self.clone(),
        };
        Self { table: Some(found), ..cursor }
    }

    /// The mark for this cursor's floor.
    pub fn mark(&self) -> FloorMark {
        FloorMark {
            snapshot: self.snapshot.clone(),
            floor: self.floor,
            in_flight: self.in_flight.clone(),
        }
    }

    /// The cursor after a sweep. `begun` is the mark that the cursor had when the sweep began.
    #[must_use]
    pub fn swept(&self, begun: FloorMark) -> Self {
        let later = self.marks.iter().filter(|mark| mark.floor > begun.floor).cloned();
        Self { marks: std::iter::once(begun.clone()).chain(later).collect(), ..self.clone() }
    }

    /// The cursor once the window up to `window` has been shipped as far as `position`.
    pub fn within(&self, window: &Snapshot, position: i64) -> Self {
        Self { window: Some(Window { snapshot: window.clone(), position }), ..self.clone() }
    }

    /// The cursor once the whole window up to `window` has been shipped. `largest` is the largest position in it.
    /// `sequence` is a value that the sequence of positions had reached before `window` was taken. Without it, the
    /// highest position stays where it was, which is always right and makes the next scan longer.
    ///
    /// Between taking `window` and reading the first page of the next window, a transaction id of the relay's own must
    /// be consumed; the module's documentation says why.
    pub fn close(&self, window: &Snapshot, largest: Option<i64>, sequence: Option<i64>) -> Self {
        let in_flight = window
            .in_progress()
            .iter()
            .map(|xid| (*xid, self.in_flight.get(xid).copied().unwrap_or(self.floor)))
            .collect();
        let top = largest.map_or(self.top, |largest| self.top.max(largest));
        let mut closed = Self {
            system_identifier: self.system_identifier.clone(),
            snapshot: window.clone(),
            high: sequence.map_or(self.high, |sequence| self.high.max(top.min(sequence))),
            top,
            floor: self.high,
            in_flight,
            window: None,
            before: self.before.clone(),
            marks: self.marks.clone(),
            table: self.table,
            left_table: self.left_table,
            again_until: self.again_until.clone().filter(|again| !window.covers(again)),
        };
        if closed.floor > self.marks.last().map_or(0, |mark| mark.floor) {
            if closed.marks.len() == MARKS {
                closed.marks.pop();
            }
            closed.marks.push(closed.mark());
        }
        closed
    }

    /// Up to which position all events have been shipped that the relay ships again. `None`: there is no limit, because
    /// it ships nothing again.
    ///
    /// A window holds its rows in the order of their positions. If it is not the last that ships something again, a
    /// later one may begin at a lower position, so only what no later one can hold counts.
    pub fn again_up_to(&self) -> Option<i64> {
        let again = self.again_until.as_ref()?;
        let below = self.in_flight.values().copied().chain([self.floor]).min().unwrap_or(0);
        let last = self.window.as_ref().filter(|window| window.snapshot.covers(again));
        Some(last.map_or(below, |window| below.max(window.position)))
    }

    /// Forgets the transactions that have finished according to `now`. This is right once a read as of `now` has found
    /// no new row, because then they have left none.
    pub fn forget_finished(&mut self, now: &Snapshot) {
        self.in_flight.retain(|xid, _| !now.has_finished(*xid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequence that is further than all positions.
    const SEQUENCE: Option<i64> = Some(1_000_000);

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_snapshot_is_read_and_printed_as_postgres_does() {
        for text in ["1:1:", "10:20:10,14,15", "730:730:"] {
            assert_eq!(snapshot(text).to_string(), text);
        }
        for text in [
            "", "1", "1:2", "2:1:", "1:2:a", "0:0:", "1:9:3,2", "1:9:9", "1:9:3:4", "1:9:3,",
            "-1:2:",
        ] {
            assert!(text.parse::<Snapshot>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_transaction_has_finished_unless_it_is_listed_or_at_or_above_xmax() {
        let s = snapshot("10:20:10,14");
        for (xid, finished) in
            [(9, true), (10, false), (11, true), (14, false), (19, true), (20, false)]
        {
            assert_eq!(s.has_finished(xid), finished, "{xid}");
        }
    }

    #[test]
    fn the_floor_lags_by_one_window() {
        let first = Cursor::start("x").close(&snapshot("10:20:"), Some(100), SEQUENCE);
        assert_eq!((first.floor, first.high), (0, 100));
        let second = first.close(&snapshot("30:40:"), Some(250), SEQUENCE);
        assert_eq!((second.floor, second.high), (100, 250));
        let empty = second.close(&snapshot("50:60:"), None, SEQUENCE);
        assert_eq!((empty.floor, empty.high), (250, 250));
    }

    #[test]
    fn a_late_row_below_the_high_position_does_not_lower_it() {
        let first = Cursor::start("x").close(&snapshot("10:20:10"), Some(100), SEQUENCE);
        let second = first.close(&snapshot("30:40:"), Some(7), SEQUENCE);
        assert_eq!(second.high, 100);
    }

    #[test]
    fn a_transaction_keeps_the_low_it_was_first_seen_with() {
        let first = Cursor::start("x").close(&snapshot("10:20:"), Some(100), SEQUENCE);
        let second = first.close(&snapshot("25:40:25"), Some(200), SEQUENCE);
        assert_eq!(second.in_flight, BTreeMap::from([(25, 0)]));
        let third = second.close(&snapshot("25:60:25,50"), Some(300), SEQUENCE);
        assert_eq!(third.in_flight, BTreeMap::from([(25, 0), (50, 100)]));
        let fourth = third.close(&snapshot("50:80:50"), Some(400), SEQUENCE);
        assert_eq!(fourth.in_flight, BTreeMap::from([(50, 100)]));
    }

    #[test]
    fn progress_inside_a_window_leaves_the_rest_as_it_was() {
        let first = Cursor::start("x").close(&snapshot("10:20:15"), Some(100), SEQUENCE);
        let inside = first.within(&snapshot("20:30:"), 150);
        assert_eq!(Cursor { window: None, ..inside.clone() }, first);
        assert_eq!(inside.window.unwrap().position, 150);
    }

    #[test]
    fn a_cursor_survives_its_column() {
        let cursor = Cursor::start("7")
            .close(&snapshot("10:20:15"), Some(100), SEQUENCE)
            .within(&snapshot("20:30:"), 150);
        let text = serde_json::to_string(&cursor).unwrap();
        assert_eq!(serde_json::from_str::<Cursor>(&text).unwrap(), cursor);
        assert!(serde_json::from_str::<Cursor>(&text.replace("10:20:15", "broken")).is_err());
    }

    #[test]
    fn a_row_far_above_the_sequence_lifts_neither_high_nor_floor_over_it() {
        let first = Cursor::start("x").close(&snapshot("10:20:"), Some(1_000_000), Some(40));
        assert_eq!((first.high, first.top), (40, 1_000_000));
        let second = first.close(&snapshot("30:40:"), Some(45), Some(44));
        assert_eq!((second.floor, second.high), (40, 44));
        let unknown = second.close(&snapshot("50:60:"), Some(99), None);
        assert_eq!((unknown.floor, unknown.high), (44, 44));
    }

    #[test]
    fn a_cursor_in_another_cluster_starts_from_nothing_and_knows_what_was_shipped() {
        let old = Cursor::start("1")
            .close(&snapshot("10:20:15"), Some(100), SEQUENCE)
            .within(&snapshot("20:30:"), 150);
        let new = old.moved_to("2", snapshot("5:5:"));
        assert_eq!((new.system_identifier.as_str(), new.high, new.floor), ("2", 0, 0));
        assert_eq!(new.snapshot, Snapshot::nothing());
        let shipped = vec![(snapshot("10:20:15"), 100), (snapshot("20:30:"), 150)];
        assert_eq!(new.before, Some(Before { found: snapshot("5:5:"), shipped }));
        // A second change remembers both, in the light of a snapshot of the newest.
        let third =
            new.close(&snapshot("7:8:"), Some(160), SEQUENCE).moved_to("3", snapshot("9:9:"));
        let before = third.before.unwrap();
        assert_eq!((before.found, before.shipped.len()), (snapshot("9:9:"), 3));
    }

    #[test]
    fn another_table_is_read_from_its_start_and_a_restarted_sequence_without_what_was_shipped() {
        let table = |relation, file| TableId { relation, sequence: Some(2), file: Some(file) };
        let first = Cursor::start("x").in_table(table(1, 3), Some(100));
        assert_eq!((first.table, first.left_table), (Some(table(1, 3)), None));
        let shipped = first.close(&snapshot("10:20:15"), Some(100), SEQUENCE);
        let shipped = shipped.close(&snapshot("30:40:"), Some(200), SEQUENCE);
        assert_eq!(shipped.in_table(table(1, 3), Some(7)), shipped, "nothing has changed");

        let inside = shipped.within(&snapshot("50:60:"), 250);
        let restarted = inside.in_table(table(1, 4), Some(7));
        assert_eq!(restarted.snapshot, shipped.marks[0].snapshot);
        assert_eq!((restarted.floor, restarted.high, &restarted.window), (0, 7, &None));
        assert_eq!((restarted.table, restarted.left_table), (Some(table(1, 4)), None));

        let other = inside.in_table(table(9, 4), Some(7));
        let wanted = Cursor { table: Some(table(9, 4)), left_table: Some(1), ..Cursor::start("x") };
        assert_eq!(other, wanted);
        assert_eq!(other.close(&snapshot("70:80:"), Some(5), SEQUENCE).left_table, Some(1));
    }

    #[test]
    fn a_snapshot_covers_another_if_it_sees_all_that_the_other_sees() {
        let s = snapshot("10:20:10,14");
        for (other, covered) in [
            ("10:20:10,14", true),
            ("10:20:10,14,15", true),
            ("10:15:10,14", true),
            ("10:12:10", true),
            ("10:20:10", false),
            ("14:20:14", false),
            ("10:21:10,14", false),
            ("10:15:10", false),
        ] {
            assert_eq!(s.covers(&snapshot(other)), covered, "{other}");
        }
    }

    #[test]
    fn after_going_back_there_is_a_limit_until_a_window_covers_what_was_there() {
        let back = |cursor: Cursor| Cursor { again_until: Some(snapshot("50:60:55")), ..cursor };
        let start = back(Cursor::start("x"));
        assert_eq!(start.again_up_to(), Some(0));
        assert_eq!(start.within(&snapshot("70:70:"), 150).again_up_to(), Some(150));
        assert_eq!(start.close(&snapshot("70:70:"), Some(200), SEQUENCE).again_up_to(), None);

        // A checkpoint within a window: another one ships the rest, from low positions.
        let first = Cursor::start("x").close(&snapshot("10:20:15"), Some(100), SEQUENCE);
        let second = first.close(&snapshot("15:30:15"), Some(200), SEQUENCE);
        let inside = back(second.within(&snapshot("15:40:15"), 300));
        assert_eq!(inside.again_up_to(), Some(0), "the transaction 15 may have rows anywhere");
        let closed = inside.close(&snapshot("30:40:"), Some(400), SEQUENCE);
        assert_eq!(closed.again_up_to(), Some(200));
        assert_eq!(closed.within(&snapshot("60:60:"), 150).again_up_to(), Some(200));
        assert_eq!(closed.within(&snapshot("60:60:"), 250).again_up_to(), Some(250));
        assert_eq!(closed.within(&snapshot("54:60:54"), 250).again_up_to(), Some(200));
        assert_eq!(closed.close(&snapshot("60:60:"), None, SEQUENCE).again_up_to(), None);
    }

    #[test]
    fn each_new_floor_leaves_a_mark_and_a_sweep_takes_the_older_ones_away() {
        let floors = |cursor: &Cursor| cursor.marks.iter().map(|m| m.floor).collect::<Vec<_>>();
        let first = Cursor::start("x").close(&snapshot("10:20:"), Some(100), SEQUENCE);
        assert_eq!(first.marks, []);
        let second = first.close(&snapshot("30:40:33"), Some(200), SEQUENCE);
        assert_eq!(second.marks, [second.mark()]);
        assert_eq!(
            (second.mark().floor, second.mark().in_flight),
            (100, BTreeMap::from([(33, 0)]))
        );
        let third = second.close(&snapshot("50:60:"), Some(300), SEQUENCE);
        assert_eq!(floors(&third), [100, 200]);
        // The same floor again moves no mark.
        let fourth = third.close(&snapshot("70:80:"), None, SEQUENCE);
        let fifth = fourth.close(&snapshot("90:95:"), None, SEQUENCE);
        assert_eq!(floors(&fifth), [100, 200, 300]);
        assert_eq!(floors(&fifth.swept(third.mark())), [200, 300]);
        let mut busy = fifth;
        for number in 4..20 {
            busy = busy.close(&snapshot("100:120:"), Some(number * 100), SEQUENCE);
        }
        assert_eq!(floors(&busy), [100, 200, 300, 400, 500, 1800]);
    }
}
