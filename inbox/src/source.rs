//! For who brings events from a source of their own: another broker, a queue in a table, a file.
//!
//! An [`InboxLayer`](crate::InboxLayer) is enough for a source that delivers an event until it is handled. One that also
//! counts attempts, gives events up, keeps keys in order and waits out outages does so with what stands here.
//! `pillarbox-consumer`, the source for JetStream, has nothing else to do it with.
//!
//! ```text
//!   event ──► InboxLayer::of(store) ──► Ok ───────────────────────────► acknowledge
//!                      │
//!                      └─► Err ──► Judge::blame ──► Event ────────────► Store::record_failure: again, or, after the last
//!                                       │                               attempt, Store::bury
//!                                       ├─────────► EventForGood ─────► Store::bury
//!                                       ├─────────► Elsewhere ────────► Store::record_outage: again, with a wait
//!                                       ├─────────► Excused ──────────► Store::record_uncounted: again, soon
//!                                       └─────────► Everybody ────────► pause until Store::answers
//! ```
//!
//! - A [`Store`] keeps what one consumer has handled and what failed. [`Store::check_sessions`] comes first.
//! - [`run_batches`] handles many events in one transaction.
//! - A message that is no event is [set aside](Store::set_aside). What an operator retries, and what waits behind a dead
//!   letter of its key, is [due](Store::take_due) from the table.
//! - An event that is delivered again may have killed the process: [`Killers`] finds out.
//! - [`keep_removing`] forgets what was handled long ago.
//!
//! Acknowledge an event only when it is handled, a duplicate or parked ([`Outcome`](crate::Outcome)), or when it is
//! buried and the answer is not [`Stored::Not`].
//!
//! ```no_run
//! use std::sync::Arc;
//! use pillarbox_event::RawEvent;
//! use pillarbox_inbox::source::{Blame, Burial, Judge, Store, Stored};
//! use pillarbox_inbox::{Delivery, InboxLayer, Router};
//! use tower::{Layer, ServiceExt};
//!
//! const MAX_ATTEMPTS: u32 = 5;
//!
//! enum Answer { Acknowledge, Again, Pause }
//!
//! /// What to do with a message, once its event has been handed to the service.
//! async fn handle(store: &Store, judge: &Judge, router: Router, event: Arc<RawEvent>) -> Result<Answer, sqlx::Error> {
//!     let service = InboxLayer::of(store.clone()).layer(router);
//!     let error = match service.oneshot(Delivery::from(event.clone())).await {
//!         Ok(_) => return Ok(Answer::Acknowledge),
//!         Err(error) => error,
//!     };
//!     let text = error.to_string();
//!     let (attempts, reason) = match judge.blame(&event.identity(), &error, false).await {
//!         Blame::Everybody => return Ok(Answer::Pause),
//!         Blame::EventForGood => (1, "permanent"),
//!         Blame::Event => match store.record_failure(&event, &text).await? {
//!             attempts if attempts < MAX_ATTEMPTS => return Ok(Answer::Again),
//!             attempts => (attempts, "attempts"),
//!         },
//!         Blame::Elsewhere | Blame::Excused(_) => return Ok(Answer::Again),
//!     };
//!     let burial = Burial { event: &event, reason, error: &text, attempts, recorded: false };
//!     match store.bury(burial).await? {
//!         Stored::Now | Stored::Before => Ok(Answer::Acknowledge),
//!         Stored::Not => Err(Stored::not_stored()),
//!     }
//! }
//! # fn main() {}
//! ```

pub use crate::batch::{BatchEnd, RunBatch, one_by_one, run_batches};
pub use crate::blame::{Blame, Judge};
pub use crate::error::is_refused;
pub use crate::fault::is_of_data;
pub use crate::killers::{Killers, Ruling};
pub use crate::retention::keep_removing;
pub use crate::store::{Burial, Lent, ParkedAll, ServerRun, Store, Stored, Taken, Unreadable};
pub use crate::timeout::HandlerTimeout;
