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
    /// `P`: the largest position shipped.
    pub high: i64,
    /// `F`: no transaction that `S` does not know of has rows at or below it. The `high` of one window ago.
    pub floor: i64,
    /// For each transaction in progress in `S`: a position at or below which it has no rows.
    #[serde(default)]
    pub in_flight: BTreeMap<Xid, i64>,
    /// How far a window has been shipped, if one is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
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
            floor: 0,
            in_flight: BTreeMap::new(),
            window: None,
        }
    }

    /// The cursor when the window up to `window` has been shipped as far as `position`.
    pub fn within(&self, window: &Snapshot, position: i64) -> Self {
        Self { window: Some(Window { snapshot: window.clone(), position }), ..self.clone() }
    }

    /// The cursor when the window up to `window`, whose largest position is `largest`, has been shipped
    /// whole.
    ///
    /// A transaction id of the relay's own must be consumed between taking `window` and reading the first
    /// page of the next one; the module's text says why.
    pub fn close(&self, window: &Snapshot, largest: Option<i64>) -> Self {
        let in_flight = window
            .in_progress()
            .iter()
            .map(|xid| (*xid, self.in_flight.get(xid).copied().unwrap_or(self.floor)))
            .collect();
        Self {
            system_identifier: self.system_identifier.clone(),
            snapshot: window.clone(),
            high: largest.map_or(self.high, |largest| self.high.max(largest)),
            floor: self.high,
            in_flight,
            window: None,
        }
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
        let first = Cursor::start("x").close(&snapshot("10:20:"), Some(100));
        assert_eq!((first.floor, first.high), (0, 100));
        let second = first.close(&snapshot("30:40:"), Some(250));
        assert_eq!((second.floor, second.high), (100, 250));
        let empty = second.close(&snapshot("50:60:"), None);
        assert_eq!((empty.floor, empty.high), (250, 250));
    }

    #[test]
    fn a_late_row_below_the_high_position_does_not_lower_it() {
        let first = Cursor::start("x").close(&snapshot("10:20:10"), Some(100));
        let second = first.close(&snapshot("30:40:"), Some(7));
        assert_eq!(second.high, 100);
    }

    #[test]
    fn a_transaction_keeps_the_low_it_was_first_seen_with() {
        let first = Cursor::start("x").close(&snapshot("10:20:"), Some(100));
        let second = first.close(&snapshot("25:40:25"), Some(200));
        assert_eq!(second.in_flight, BTreeMap::from([(25, 0)]));
        let third = second.close(&snapshot("25:60:25,50"), Some(300));
        assert_eq!(third.in_flight, BTreeMap::from([(25, 0), (50, 100)]));
        let fourth = third.close(&snapshot("50:80:50"), Some(400));
        assert_eq!(fourth.in_flight, BTreeMap::from([(50, 100)]));
    }

    #[test]
    fn progress_inside_a_window_leaves_the_rest_as_it_was() {
        let first = Cursor::start("x").close(&snapshot("10:20:15"), Some(100));
        let inside = first.within(&snapshot("20:30:"), 150);
        assert_eq!(Cursor { window: None, ..inside.clone() }, first);
        assert_eq!(inside.window.unwrap().position, 150);
    }

    #[test]
    fn a_cursor_survives_its_column() {
        let cursor = Cursor::start("7")
            .close(&snapshot("10:20:15"), Some(100))
            .within(&snapshot("20:30:"), 150);
        let text = serde_json::to_string(&cursor).unwrap();
        assert_eq!(serde_json::from_str::<Cursor>(&text).unwrap(), cursor);
        assert!(serde_json::from_str::<Cursor>(&text.replace("10:20:15", "broken")).is_err());
    }
}
