//! Dead and parked events, as the shipper meets them.
//!
//! ```text
//!            the broker can never store it               retried by an operator
//!   outbox ───────────────────────────────► dead ──────────────────────────────► parked
//!      │                                     ▲                                     │ ▲
//!      │                                     └──── it can still not be stored ─────┤ │
//!      │                                                                 shipped ──┴─┼─► retried
//!      └── order = "strict", and an unresolved event of its key is here ─────────────┘
//! ```
//!
//! They are written on the lease's connection: so these rows, like the cursor, have one writer, whose epoch fences it.
//! Parked events are shipped by the shipper itself, between
//! two pages; in a strict order that is the moment at which their key goes on.

mod aside;
mod due;
mod noted;

use crate::cursor::Cursor;
use crate::lease::{Lease, LeaseError};
use crate::message::Row;
use crate::refused::Refused;
use crate::rows::BadRow;

pub(crate) use aside::Aside;
pub(crate) use noted::Unnoted;

/// Parked events, in the order in which they are to be shipped.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) events: Vec<Parked>,
    /// Those among them that cannot be sent.
    pub(crate) bad: Vec<BadRow>,
}

/// A parked event.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) letter: i64,
    pub(crate) row: Row,
    /// How often it has been tried before.
    pub(crate) attempts: i32,
}

impl Lease {
    /// Writes this cursor, and a dead letter for the event before it. Answers whether the letter is a new one.
    pub(crate) async fn give_up(
        &self,
        cursor: &Cursor,
        refused: Refused,
    ) -> Result<bool, LeaseError> {
        let new = self.set_aside(Some(self.json(cursor)?), vec![Aside::dead(refused)]).await?;
        Ok(!new.is_empty())
    }

    /// Sets these events aside, and leaves the cursor where it is. Answers the positions of those that were not aside
    /// already.
    pub(crate) async fn keep(&self, events: Vec<Aside>) -> Result<Vec<i64>, LeaseError> {
        self.set_aside(None, events).await
    }
}
