//! Dead letters: events that were given up, in one table for each side.
//!
//! | side | table | why an event is there | a retry |
//! |---|---|---|---|
//! | outbox | `outbox_dead_letter` | the broker can never store it (docs/operations.md has the reasons) | the relay ships it, under its id and a new `Nats-Msg-Id` |
//! | inbox | `inbox_dead_letter` | a handler gave it up | its consumer handles it, from the table; nothing is published again |
//!
//! Both tables have the same states:
//!
//! ```text
//!                 given up              retried by an operator
//!   an event ────────────────► dead ────────────────────────────► parked ── done with ──► retried
//!      │                        │  ▲                               │ │ ▲
//!      │                        │  └───────── fails again ─────────┘ │ │
//!      │                        └─ discarded ─► discarded ◄──────────┘ │
//!      └── the order is strict, and an earlier event of its key is dead ─┘
//! ```
//!
//! `dead` and `parked` are unresolved: an operator sees them, and retention leaves them alone.
//!
//! | file | concept |
//! |---|---|
//! | [`state`] | the states |
//! | [`of_inbox`] | the statements about one consumer's letters |
//! | [`view`] | an operator's view of either side |

pub mod of_inbox;
pub mod state;
pub mod view;

pub use state::State;
pub use view::{DeadLetter, DeadLetters, Filter, RetryError, Side};
