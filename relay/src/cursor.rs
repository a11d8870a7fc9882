//! The relay's place in the outbox: a Postgres snapshot.
//!
//! The relay never marks rows. It remembers a snapshot `S`; what `S` can see has been shipped, and new is
//! what is visible now and was not visible in `S`, in the order of `position`. A transaction that commits
//! late is simply not in `S` yet, whatever positions its rows have, so one that stays open delays nothing
//! but itself. The idea is that of PgQ's ticks, without the ticker.
//!
//! The alternatives fail: `position > last` loses rows that commit late; waiting for
//! `txid < pg_snapshot_xmin()` stops everything behind one long transaction; ordering by `txid` turns a key
//! around when a transaction takes its id early and its row lock late; and marking or deleting each row
//! leaves a dead version of it behind for every reader to step over.
//!
//! # Where to start reading
//!
//! Rows are read in windows. A window lies between two snapshots, `S` and `S'`, and is read by an index scan
//! over `position` that must start low enough to meet every row that `S` could not see:
//!
//! - a transaction that was in progress in `S` is in its `xip` list; for each the cursor holds a `low`, below
//!   which it has no rows;
//! - a transaction that is *not* in the list may nevertheless have been running: `xmax` is the latest
//!   *completed* id plus one, so a transaction at or above it may have begun before `S` was taken. This is
//!   what the **floor** is for, and why it lags by a window.
//!
//! The relay consumes a transaction id `c` of its own after it has taken `S` and before it takes `S'`
//! ([`Cursor::close`] must not be called otherwise). As `c` has completed by then, every id at or above
//! `xmax(S')` is greater than `c` and so began after `S` was taken; a row's position is drawn after its
//! transaction's id (see the column order in the outbox's migration), hence after `S`, hence above the
//! largest position `P` that was visible in `S`. So after the window up to `S'` the floor is the `P` of the
//! window before it, not its own: with its own, rows are lost (61 of 19,487 in an experiment).

//!
//! Positions are handed out by a sequence, so the floor may never be above what the sequence had reached *before* `S'`
//! was taken: a row that somebody loaded at a position far above the sequence must not lift the floor over positions
//! that writers are still to draw. [`Cursor::close`] is told how far the sequence was.
//!
//! # Rows of another cluster
//!
//! A dump that was loaded, a subscription, or plain SQL can put rows here whose `txid` another cluster has given. Such
//! an id says nothing: it may lie behind this cluster's ids, and then every snapshot sees it, or ahead of them. What
//! tells the truth about every row is its system column `xmin`, the id under which somebody put it *here*. It is
//! 32 bits wide, and under a savepoint it is that of a subtransaction, which snapshots do not list. So the rule, in
//! `source/visibility.rs`, takes `txid` where the two agree, and both of them where they do not.
//!
//! Rows are never rewritten. When the cursor itself is of another cluster, as after a dump and a restore, it starts
//! again from nothing and keeps what the old one had shipped as [`Before`].
//!
//! Rows can also arrive at positions that the scan has left behind. A sweep over the whole table looks for
//! them again and again, by the [marks](Mark) that closed windows leave.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A transaction id, with its epoch (`xid8`).
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

    /// The oldest transaction that may still have been running: all older ones had finished.
    pub fn xmin(&self) -> Xid {
        self.xmin
    }

    /// The transactions it lists as in progress. Others at or above [`xmax`](Self::xmax) may be, too.
    pub fn in_progress(&self) -> &[Xid] {
        &self.in_progress
    }

    /// The first id that it knows nothing of: the latest completed one, plus one.
    pub fn xmax(&self) -> Xid {
        self.xmax
    }

    /// Whether this transaction had finished, whether it committed or not.
    pub fn has_finished(&self, xid: Xid) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }
}

/// A text that is not a snapshot.
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

/// The relay's place. It is the `cursor` column of `pillarbox.relay`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cursor {
    /// The cluster whose transaction ids these are.
    pub system_identifier: String,
    /// `S`: what it sees has been shipped.
    pub snapshot: Snapshot,
    /// `P`: the largest position shipped, but no more than what the sequence had reached.
    pub high: i64,
    /// The largest position shipped.
    #[serde(default)]
    pub top: i64,
    /// `F`: no transaction that `S` does not know of has rows at or below it. The `high` of one window ago.
    pub floor: i64,
    /// For each transaction in progress in `S`: a position at or below which it has no rows.
    #[serde(default)]
    pub in_flight: BTreeMap<Xid, i64>,
    /// How far a window has been shipped, if one is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// What had been shipped when the outbox came into this cluster, if it came from another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    /// What sweeps for rows at low positions compare with, in the order of their floors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Mark>,
}

/// What had been shipped from another cluster.
///
/// It covers a row that was here when the cluster was found to be another one, that was put here under another id
/// than its `txid`, and that one of the old snapshots could see at a position shipped by then.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Before {
    /// A snapshot of this cluster, taken when it was found to be another one.
    pub found: Snapshot,
    /// Snapshots of other clusters, each with the position up to which its rows had been shipped.
    pub shipped: Vec<(Snapshot, i64)>,
}

/// Other clusters that are remembered. Of older ones, rows are shipped again.
const CLUSTERS_REMEMBERED: usize = 16;

/// So many marks are kept at the most. With more floors in one sweep's time, the last one moves on.
const MARKS: usize = 6;

/// A floor, and the snapshot with which the scan left the positions up to it behind. It tells a sweep what is new there.
///
/// A row at or below `floor` that `snapshot` cannot see was put there since, by other means than the sequence: rows
/// of running transactions that drew their positions from it lie above, or the transaction is listed, with the position
/// above which they lie. Of several marks the one with the lowest floor at or above a position tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// The cursor's snapshot.
    pub snapshot: Snapshot,
    /// The cursor's floor.
    pub floor: i64,
    /// The transactions that the cursor listed as in flight, each with a position at or below which the sequence gave it
    /// none. What it has there all the same is late, whoever put it there.
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
    /// Before the first row of the cluster with this system identifier.
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
        }
    }

    /// The first cursor in the cluster with this system identifier, of an outbox that came from another one. `found` is
    /// a snapshot of the new cluster.
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

    /// The cursor for a sequence that has been set back to `sequence`: everything is looked at once more, and what
    /// has been shipped is not shipped again.
    #[must_use]
    pub fn set_back(&self, sequence: i64) -> Self {
        Self {
            high: self.high.min(sequence),
            top: self.top.min(sequence),
            floor: 0,
            in_flight: self.in_flight.keys().map(|xid| (*xid, 0)).collect(),
            marks: Vec::new(),
            ..self.clone()
        }
    }

    /// The mark of this cursor's floor.
    pub fn mark(&self) -> Mark {
        Mark {
            snapshot: self.snapshot.clone(),
            floor: self.floor,
            in_flight: self.in_flight.clone(),
        }
    }

    /// The cursor when a sweep has ended that began where the cursor had this mark.
    #[must_use]
    pub fn swept(&self, begun: Mark) -> Self {
        let later = self.marks.iter().filter(|mark| mark.floor > begun.floor).cloned();
        Self { marks: std::iter::once(begun.clone()).chain(later).collect(), ..self.clone() }
    }

    /// The cursor when the window up to `window` has been shipped as far as `position`.
    pub fn within(&self, window: &Snapshot, position: i64) -> Self {
        Self { window: Some(Window { snapshot: window.clone(), position }), ..self.clone() }
    }

    /// The cursor when the window up to `window`, whose largest position is `largest`, has been shipped
    /// whole. `sequence` is a value that the sequence of positions had reached before `window` was taken; without it
    /// the highest position stays where it was, which is always right and makes the next scan longer.
    ///
    /// A transaction id of the relay's own must be consumed between taking `window` and reading the first
    /// page of the next one; the module's text says why.
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
        };
        if closed.floor > self.marks.last().map_or(0, |mark| mark.floor) {
            if closed.marks.len() == MARKS {
                closed.marks.pop();
            }
            closed.marks.push(closed.mark());
        }
        closed
    }

    /// Forgets the transactions that `now` knows to have finished, which is right once a read as of `now`
    /// has found no new row: then they have left none.
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
