//! Dead letters: events that were given up, in one table for each side.
//!
//! | side | table | why an event is there | a retry |
//! |---|---|---|---|
//! | outbox | `outbox_dead_letter` | the broker can never store it (docs/operations.md lists the reasons) | the relay ships it under the same event id and a new `Nats-Msg-Id` |
//! | inbox | `inbox_dead_letter` | handling failed for good, or too often | the consumer handles it from the table; nothing is published again |
//!
//! Both tables have the same states:
//!
//! ```text
//!                 given up              retried by an operator           shipped or handled
//!   an event ────────────────► dead ────────────────────────────► parked ────────────────────► retried
//!      │                        │  ▲                               │ │ ▲
//!      │                        │  └───────── fails again ─────────┘ │ │
//!      │                        └───────────► discarded ◄────────────┘ │
//!      └── the order is strict, and an earlier event of its key is dead ─┘
//! ```
//!
//! An operator may restore a discarded letter, which is then dead again, and edit a dead one, which stays dead.
//!
//! `dead` and `parked` letters are unresolved: operators see them, and retention does not remove them.
//!
//! | file | concept |
//! |---|---|
//! | [`state`] | the states |
//! | [`of_inbox`] | the statements about one consumer's letters |
//! | [`fingerprint`](mod@fingerprint) | what the errors of one kind have in common |
//! | [`brief`](mod@brief) | the useful part of an error |
//! | [`groups`] | letters that belong together |
//! | [`view`] | an operator's view of either side |
//! | [`change`] | what an operator changes: retry, discard, restore, edit |
//! | [`merge`] | JSON merge patches, for editing many payloads at once |

pub mod brief;
pub mod change;
pub mod fingerprint;
pub mod groups;
pub mod merge;
pub mod of_inbox;
pub mod state;
pub mod view;

pub use brief::brief;
pub use change::{Changed, Edit, EditError, PayloadEdit, RetryOutcome};
pub use fingerprint::fingerprint;
pub use groups::{Group, Groups};
pub use state::LetterState;
pub use view::{DeadLetters, Filter, LetterView, RetryError, Side};
