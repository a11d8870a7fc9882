//! The rule that the relay's cursor goes by, and others that look right and are not.

use pillarbox_relay::cursor::{Cursor, Snapshot};

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
}
