//! Runs a handler once per event id, inside the handler's own transaction.
//!
//! Delivery is at least once, so every event may come again: its acknowledgement was lost, the consumer was
//! killed, somebody replayed it. The inbox records the id of each handled event *in the transaction of the
//! handler's own writes*, so that both are there or neither is; a repeat finds the id and is skipped. Effects
//! in that database happen once. Effects elsewhere (a mail, a payment provider) cannot join the transaction:
//! give them the event's id as their idempotency key.
//!
//! [`InboxLayer`] is that as a tower layer, for events from anywhere: give it a [`Delivery`], and acknowledge the message
//! once the answer is there.
//!
//! ```no_run
//! use pillarbox_event::RawEvent;
//! use pillarbox_inbox::{Delivery, HandlerError, InboxLayer, Router, Tx, handler_fn};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! async fn charge(tx: &mut Tx, placed: RawEvent) -> Result<(), HandlerError> {
//!     sqlx::query("insert into charges (order_id) values ($1)").bind(placed.key()).execute(&mut **tx).await?;
//!     Ok(())
//! }
//!
//! # async fn run(pool: sqlx::PgPool, event: RawEvent) -> Result<(), Box<dyn std::error::Error>> {
//! pillarbox_inbox::migrate(&pool).await?;
//! let service = ServiceBuilder::new()
//!     .layer(InboxLayer::new(pool, "payments")?)
//!     .service(Router::new().on(handler_fn(charge)));
//! let outcome = service.oneshot(Delivery::from(event)).await?; // handled now, or before
//! # Ok(())
//! # }
//! ```
//!
//! The crate `pillarbox-consumer` does this for events from JetStream, with retries, order per key and dead letters.
//!
//! | module | concept |
//! |---|---|
//! | [`handler`] | [`Handler`], [`handler_fn`], [`Received`]: what a service writes |
//! | [`batch`] | [`BatchHandler`]: many events in one transaction |
//! | [`router`] | [`Router`]: one handler for each type of event |
//! | [`failure`] | [`HandlerError`] and whose [`Fault`] it is |
//! | [`layer`] | [`InboxLayer`]: the tower layer that makes it once |
//! | [`delivery`] | what the layer takes, and what it hands in |
//! | [`dead_letter`] | [`DeadLetters`]: what was given up, and how to get at it |
//! | `http` | `IdempotencyLayer`: HTTP requests that take effect once (feature `http`) |
//! | [`migrations`](mod@migrations) | the tables |
//! | `pooler` | whether a pool's sessions are its own |
//! | `retention` | removes what was handled long ago |
//! | `blame` | whose failure it is, once the database has been asked |
//! | `limit` | how long a handler may take |
//! | `store`, `kept`, `session` | the statements, and the connections they run on |

pub mod batch;
mod blame;
pub mod dead_letter;
pub mod delivery;
mod error;
pub mod failure;
pub mod handler;
#[cfg(feature = "http")]
pub mod http;
mod kept;
pub mod layer;
mod limit;
pub mod migrations;
mod pooler;
mod retention;
pub mod router;
mod session;
mod store;

pub use batch::{BatchHandler, batch_fn};
pub use dead_letter::{DeadLetter, DeadLetters, LetterError, Retried, WhichLetter};
pub use delivery::{Delivery, Handling, Outcome};
pub use error::InboxError;
pub use failure::{Fault, HandlerError, MAX_RETRY_AFTER};
pub use handler::{Handler, Received, Tx, handler_fn};
pub use layer::{Inbox, InboxLayer};
pub use migrations::{migrate, migrate_schema, migrations};
pub use pillarbox_store::HiddenRows;
pub use pooler::Pooled;
pub use router::Router;

/// What `pillarbox-consumer` needs of the inside. Not for others: it may change with any release.
#[doc(hidden)]
pub mod internal {
    pub use crate::batch::{Batches, End, One, RunBatch};
    pub use crate::blame::{Blame, Breakers, Finding};
    pub use crate::failure::{Sign, is_of_data, sign_of};
    pub use crate::limit::{Limit, TookTooLong};
    pub use crate::retention::{LONGEST_AGE, keep_removing};
    pub use crate::store::{Burial, Marked, ServerRun, Store, Stored, Unreadable};
}
