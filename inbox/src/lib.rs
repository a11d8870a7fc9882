//! Runs a handler once per event id, inside the handler's own transaction.
//!
//! Delivery is at least once, so every event may come again: its acknowledgement was lost, the consumer was killed, or
//! somebody replayed it. The inbox records the id of each handled event *in the transaction of the handler's own
//! writes*, so that both are there or neither is. A repeat finds the id and is skipped. So effects in that database
//! happen once. Effects elsewhere (a mail, a payment provider) cannot join the transaction: give them the event's id as
//! their idempotency key.
//!
//! [`InboxLayer`] does this as a tower layer, for events from any source. Give it a [`Delivery`], and acknowledge the
//! message when it has answered.
//!
//! ```no_run
//! use pillarbox_event::RawEvent;
//! use pillarbox_inbox::{Delivery, HandlerError, InboxLayer, Router, Tx};
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
//!     .service(Router::new().on(charge));
//! let outcome = service.oneshot(Delivery::from(event)).await?; // handled now, or before
//! # Ok(())
//! # }
//! ```
//!
//! A source of events that also counts attempts, gives up, and waits out outages is built on [`source`].
//! The crate `pillarbox-consumer` does this for events from JetStream, with retries, order per key and dead letters.
//!
//! | module | concept |
//! |---|---|
//! | [`handler`] | [`Handler`], [`with_state`], [`Received`]: what a service writes |
//! | [`batch`] | [`BatchHandler`]: many events in one transaction |
//! | [`router`] | [`Router`]: one handler for each type of event |
//! | [`error`], [`fault`] | [`HandlerError`], [`InboxError`], and whose [`Fault`] it is |
//! | `provider` | `Classified`: the answers of an HTTP provider (feature `reqwest`) |
//! | `retry_after` | how long a provider asks to wait |
//! | [`layer`] | [`InboxLayer`]: the tower layer that runs a handler once per event |
//! | [`delivery`] | what the layer takes, and what it hands in |
//! | [`dead_letter`] | [`DeadLetters`]: what was given up, and how to get at it |
//! | `http` | `IdempotencyLayer`: HTTP requests that take effect once (feature `http`) |
//! | [`migrations`](mod@migrations) | the tables |
//! | `pooler` | whether a pool's sessions are its own |
//! | `retention` | removes what was handled long ago |
//! | `blame` | whose failure it is, once the database has been asked |
//! | [`source`] | what a source of events other than JetStream is built on |
//! | [`testing`] | [`Received::for_test`]: an event for the unit test of a handler |
//! | `timeout` | how long a handler may take |
//! | `killers` | events that may kill the process |
//! | `store` | the statements, and the connections they run on |

pub mod batch;
mod blame;
pub mod dead_letter;
pub mod delivery;
pub mod error;
pub mod fault;
pub mod handler;
#[cfg(feature = "http")]
pub mod http;
mod killers;
pub mod layer;
pub mod migrations;
mod pooler;
#[cfg(feature = "reqwest")]
pub mod provider;
mod retention;
mod retry_after;
pub mod router;
pub mod source;
mod store;
pub mod testing;
mod timeout;
mod tx;

pub use batch::BatchHandler;
pub use dead_letter::{DeadLetter, DeadLetters, LetterError, Retried, WhichLetter};
pub use delivery::{Delivery, Handling, Outcome};
pub use error::{HandlerCause, HandlerError, InboxError, MAX_RETRY_AFTER};
pub use fault::Fault;
pub use handler::{Handler, IntoHandlerError, Received, with_state};
pub use layer::{Inbox, InboxLayer};
pub use migrations::{migrate, migrate_schema, migrations};
pub use pillarbox_store::HiddenRows;
pub use pooler::Pooled;
pub use router::{Router, SecondHandler};
pub use tx::{Savepoint, Tx};
