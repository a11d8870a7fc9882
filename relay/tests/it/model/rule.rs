//! The rule that the relay's cursor goes by, and others that look right and are not.

use pillarbox_relay::cursor::{Cursor, Snapshot, Xid};

use super::postgres::{Position, Row};

/// How the relay reads and moves its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// As it is shipped.
    Shipped,
    /// The floor is the largest position shipped, without the lag of a window.
    FloorIsHigh,
    /// No id is spent between two windows.
    NoIdSpent,
    /// The scan always starts at the floor, whoever was in progress.
    InFlightIgnored,
    /// Whether a transaction in flight has finished is judged by an earlier snapshot than the page's.
    FinishedJudgedEarlier,
    /// The window's snapshot is taken in another statement, before the one that reads the rows.
    SnapshotOfAnotherStatement,
    /// The classic: `position > last`.
    PositionAboveLast,
    /// The other classic: in the order of transaction ids.
    OrderedById,
    /// Rows are taken by the snapshot's word alone, which knows of an end but not of which.
    RolledBackSeen,
    /// A row's `txid` is believed, whoever put the row there.
    CarriedIdBelieved,
    /// Nobody looks for rows at positions that the scan has left behind.
    NoSweep,
    /// A sweep leaves out all rows with the id of a transaction that was in flight, wherever they are.
    SweepLeavesInFlightOut,
    /// What an old cluster's snapshot sees was shipped, whenever it came here.
    CoveredWheneverItCame,
}

impl Rule {
    /// The cursor when a window has been shipped whole.
    pub fn close(self, cursor: &Cursor, window: &Snapshot, largest: Option<i64>) -> Cursor {
        // In the model the sequence is always further than what a window holds.
        let mut next = cursor.close(window, largest, Some(i64::MAX));
        match self {
            Self::FloorIsHigh => next.floor = next.high,
            Self::InFlightIgnored => next.in_flight.clear(),
            _ => {}
        }
        next
    }

    /// Whether it takes a snapshot before it reads.
    pub fn looks_early(self) -> bool {
        matches!(self, Self::FinishedJudgedEarlier | Self::SnapshotOfAnotherStatement)
    }

    /// `:seen` of `source/visibility.rs`, for a row that `x` put there.
    pub fn seen(self, s: &Snapshot, x: Xid, row: Row) -> bool {
        let t = row.carried.unwrap_or(x);
        match t == x || self == Self::CarriedIdBelieved {
            true => s.has_finished(t),
            false => x < s.xmin() || (s.has_finished(x) && (t > x || s.has_finished(t))),
        }
    }

    /// `:surely_seen`.
    pub fn surely_seen(self, s: &Snapshot, x: Xid, row: Row) -> bool {
        let t = row.carried.unwrap_or(x);
        match t == x || self == Self::CarriedIdBelieved {
            true => s.has_finished(t),
            false => x < s.xmin() || (t >= s.xmin() && s.has_finished(x) && s.has_finished(t)),
        }
    }

    /// `:covered`.
    pub fn covered(self, cursor: &Cursor, x: Xid, row: Row) -> bool {
        let (Some(before), Some(t)) = (&cursor.before, row.carried) else {
            return false;
        };
        let was_here = self == Self::CoveredWheneverItCame || before.found.has_finished(x);
        t != x
            && was_here
            && before.shipped.iter().any(|(s, upto)| row.position <= *upto && s.has_finished(t))
    }

    /// What `late.sql` leaves to the scan: rows that a transaction which was in flight may have written.
    pub fn left_to_scan(self, low: Position, x: Xid, row: Row) -> bool {
        let t = row.carried.unwrap_or(x);
        self == Self::SweepLeavesInFlightOut || (t <= x && row.position > low)
    }
}
