//! What a source of events other than JetStream is built on: another broker, a queue in a table, a file.
//!
//! An [`InboxLayer`](crate::InboxLayer) is enough for a source that delivers an event until it is handled. A source
//! that also counts attempts, gives events up, keeps keys in order and waits out outages uses the items of this module.
//! `pillarbox-consumer`, the source for JetStream, uses nothing else.
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
//! - A [`Store`] keeps what one consumer has handled and what failed. Call [`Store::check_sessions`] first.
//! - [`Router::batches`](crate::Router::batches) handles many events in one transaction.
//! - [Set aside](Store::set_aside) a message that is no event. Events that an operator retries, and those that wait
//!   behind a dead letter of their key, are [taken](Store::take_due) from the table.
//! - An event that is delivered again may have killed the process: [`Killers`] finds out.
//! - [`Store::beat`] says how a process is, and what operators have paused and limited.
//! - [`keep_removing`] forgets what was handled long ago.
//!
//! Acknowledge an event only when it is handled, a duplicate or parked ([`Outcome`](crate::Outcome)), or when it is
//! buried and the answer is not [`LetterStored::Not`].
//!
//! ```no_run
//! use std::sync::Arc;
//! use pillarbox_event::RawEvent;
//! use pillarbox_inbox::source::{Blame, Burial, Judge, Store, LetterStored};
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
//!         LetterStored::Now | LetterStored::Before => Ok(Answer::Acknowledge),
//!         LetterStored::Not => Err(LetterStored::not_stored()),
//!     }
//! }
//! # fn main() {}
//! ```

pub use crate::batch::{BatchEnd, RunBatch};
pub use crate::blame::{Blame, Judge};
pub use crate::delivery::DeliveryService;
pub use crate::error::is_refused;
pub use crate::killers::{Killers, Ruling};
pub use crate::retention::keep_removing;
pub use crate::store::{
    Beat, BeatLag, Burial, Lent, LetterStored, ParkedAll, PausedBy, ServerRun, Store, Taken, Told,
    Unhandled, Unreadable,
};
pub use crate::timeout::HandlerTimeout;
pub use pillarbox_store::bad_data::is_refused_value;
