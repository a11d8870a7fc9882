//! What happened in a run, as its processes and servers recorded it.

use crate::event::Drawn;
use crate::journal::At;
use crate::trips::record::Trips;

/// All that is known of a run when it is over.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What writers drew and were told.
    pub written: Vec<Written>,
    /// What the foreign producer sent.
    pub foreign: Vec<Foreign>,
    /// The rows of the outbox. They decide what was committed.
    pub committed: Vec<Committed>,
    /// What was scheduled, in transactions that were committed.
    pub scheduled: Vec<Scheduled>,
    /// What cancels answered, in transactions that were committed.
    pub cancels: Vec<Cancel>,
    /// The messages that the stream held, at the end and before each loss.
    pub stored: Vec<Stored>,
    /// The events that handlers received.
    pub given: Vec<Given>,
    /// What took effect.
    pub effects: Vec<Effect>,
    /// What was given up.
    pub dead: Vec<Dead>,
    /// What came of trips. Empty without a saga.
    pub trips: Trips,
    /// The consumers, and whether each keeps the order of a key.
    pub consumers: Vec<(&'static str, bool)>,
    /// Every new epoch and every movement of the cursor, in order.
    pub cursor: Vec<CursorWrite>,
    /// What the broker lost.
    pub losses: Vec<Loss>,
    /// The faults.
    pub faults: Vec<Made>,
    /// What was not at rest at the end, and how much of it.
    pub left: Vec<(String, i64)>,
    /// Processes that ended by themselves, and when, except those that an event was meant to kill.
    pub ended: Vec<(At, String)>,
    /// Events that the inbox skipped because they were handled, as far as the processes lived long enough to record it.
    pub skipped: u64,
}

/// An event that a writer drew.
#[derive(Clone, Debug)]
pub struct Written {
    /// The event.
    pub event: Drawn,
    /// The writer's process.
    pub by: String,
    /// When it was drawn.
    pub at: At,
    /// What came of its transaction, as far as its writer knows.
    pub told: Told,
    /// When the writer learnt it; 0 if it never did.
    pub told_at: At,
}

/// A message that a foreign producer sent, once or more often.
#[derive(Clone, Debug)]
pub struct Foreign {
    /// Its name.
    pub name: String,
    /// What is odd about it.
    pub habit: String,
    /// Whether a handler can receive it.
    pub readable: bool,
    /// When it was sent.
    pub at: At,
    /// When the broker last said that it holds it.
    pub told_at: Option<At>,
}

/// What a writer knows of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It was committed.
    Committed,
    /// It was rolled back.
    RolledBack,
    /// An error in place of the answer, or the writer's death.
    Unknown,
}

/// A row of the outbox.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The event's id.
    pub id: String,
    /// Its position.
    pub position: i64,
    /// Its transaction's id.
    pub txid: String,
}

/// An event that was scheduled for later.
#[derive(Clone, Debug)]
pub struct Scheduled {
    /// Its id.
    pub id: String,
    /// When it was due, by the database's clock.
    pub due: At,
    /// When it came into the outbox, by the same clock. Empty if it never did.
    pub released: Vec<At>,
}

/// A cancel of a scheduled event.
#[derive(Clone, Debug)]
pub struct Cancel {
    /// The event.
    pub id: String,
    /// The answer: whether it was cancelled.
    pub cancelled: bool,
}

/// A message in the stream.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The event's id, or the name of a foreign producer's message.
    pub id: String,
    /// The number of the look at the stream that saw it.
    pub look: usize,
    /// Its place in the stream.
    pub sequence: u64,
    /// When it was stored.
    pub at: At,
}

/// A handler was called.
#[derive(Clone, Debug)]
pub struct Given {
    /// The event's id.
    pub id: String,
    /// The consumer's process.
    pub process: String,
    /// When.
    pub at: At,
}

/// A row that a handler wrote.
#[derive(Clone, Debug)]
pub struct Effect {
    /// Its place in the order of writing.
    pub seq: i64,
    /// When.
    pub at: At,
    /// The consumer.
    pub consumer: String,
    /// Its process.
    pub process: String,
    /// The event's id.
    pub id: String,
    /// The event's key.
    pub key: Option<String>,
    /// The event's number.
    pub number: i64,
    /// The highest number of its key that the handler saw.
    pub previous: Option<i64>,
}

/// A dead letter.
#[derive(Clone, Debug)]
pub struct Dead {
    /// The consumer that gave it up. `None` if the relay did.
    pub consumer: Option<String>,
    /// The event's id.
    pub id: String,
    /// Why.
    pub reason: String,
    /// The error.
    pub error: String,
    /// When.
    pub at: At,
}

/// A write to the relay's row that took the lease or moved the cursor.
#[derive(Clone, Debug)]
pub struct CursorWrite {
    /// When.
    pub at: At,
    /// The server process of the connection over which the write came.
    pub backend: i32,
    /// Whether it took the lease.
    pub took: bool,
    /// The epoch in force.
    pub epoch: i64,
    /// The holder in force.
    pub holder: String,
    /// The largest position shipped, as it was written.
    pub high: i64,
    /// Whether the cursor moved back. This also counts within a window, where `high` does not change.
    pub back: bool,
}

/// A loss by the broker of messages that it had acknowledged.
#[derive(Clone, Debug)]
pub struct Loss {
    /// When the loss began.
    pub began: At,
    /// When the relay went back. `None` if it did not.
    pub discovered: Option<At>,
    /// How.
    pub how: String,
}

/// A fault that was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The name of its kind.
    pub kind: String,
    /// What it was.
    pub what: String,
    /// When it began.
    pub from: At,
    /// When it was repaired.
    pub to: At,
    /// Whether it hit something. Another fault may have been in its way.
    pub hit: bool,
}
