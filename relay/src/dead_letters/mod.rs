//! Dead and parked events, as the shipper handles them.
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
//! If the table does not take a letter, its event is [held]: noted in the relay's own row, which the cursor may then
//! pass.
//!
//! They are written on the lease's connection. So these rows have one writer, like the cursor, and the epoch fences it.
//! The shipper itself ships parked events, between two pages. In a strict order, that is also when their key continues.

mod aside;
mod due;
mod held;
mod noted;

use crate::cursor::Cursor;
use crate::lease::{Lease, LeaseError};
use crate::message::Row;
use crate::refused::Refused;
use crate::rows::BadRow;

pub(crate) use aside::{Aside, Written};
pub(crate) use held::Held;
pub(crate) use noted::Unnoted;

/// Parked events, in the order in which they must be shipped.
#[derive(Debug, Default)]
pub(crate) struct Due {
    pub(crate) events: Vec<Parked>,
    /// Those of them that cannot be sent.
    pub(crate) bad: Vec<BadRow>,
}

/// A parked event.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) letter: i64,
    pub(crate) row: Row,
    /// How many attempts failed before.
    pub(crate) attempts: i32,
}

impl Lease {
    /// Writes a dead letter for an event, and then this cursor, which passes the event. Returns whether the letter is
    /// new.
    pub(crate) async fn give_up(
        &self,
        cursor: &Cursor,
        refused: Refused,
    ) -> Result<bool, LeaseError> {
        let written = self.set_aside(Some(self.json(cursor)?), vec![Aside::dead(refused)]).await?;
        Ok(!written.new.is_empty())
    }

    /// Sets these events aside, and leaves the cursor where it is.
    pub(crate) async fn keep(&self, events: Vec<Aside>) -> Result<Written, LeaseError> {
        self.set_aside(None, events).await
    }
}
