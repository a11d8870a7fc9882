//! Runs a handler once per event id, inside the handler's own transaction.
//!
//! Delivery is at least once, so every event may come again: its acknowledgement was lost, the consumer was
//! killed, somebody replayed it. The inbox records the id of each handled event *in the transaction of the
//! handler's own writes*, so that both are there or neither is; a repeat finds the id and is skipped. Effects
//! in that database happen once. Effects elsewhere (a mail, a payment provider) cannot join the transaction:
//! give them the event's id as their idempotency key.
//!
//! ```no_run
//! use std::borrow::Cow;
//! use pillarbox_event::Event;
//! use pillarbox_inbox::{Consumer, ConsumerConfig, HandlerError, Router, Tx, handler_fn};
//! use tokio_util::sync::CancellationToken;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct OrderPlaced { order: i64, cents: i64 }
//!
//! impl Event for OrderPlaced {
//!     const TYPE: &'static str = "order.placed";
//!     fn topic(&self) -> Cow<'_, str> { "orders.placed".into() }
//!     fn key(&self) -> Option<Cow<'_, str>> { Some(self.order.to_string().into()) }
//! }
//!
//! async fn charge(tx: &mut Tx, placed: OrderPlaced) -> Result<(), HandlerError> {
//!     sqlx::query("insert into charges (order_id, cents) values ($1, $2)")
//!         .bind(placed.order)
//!         .bind(placed.cents)
//!         .execute(&mut **tx)
//!         .await?;
//!     Ok(())
//! }
//!
//! # async fn run(client: async_nats::Client, pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! pillarbox_inbox::migrate(&pool).await?;
//! let config = ConsumerConfig {
//!     stream: "ORDERS".into(),
//!     name: "payments".into(),
//!     filter_subjects: vec!["orders.placed".into()],
//!     ..ConsumerConfig::default()
//! };
//! let shutdown = CancellationToken::new();
//! Consumer::new(client, pool, config)?.run(Router::new().on(handler_fn(charge)), shutdown).await?;
//! # Ok(())
//! # }
//! ```
//!
//! | module | concept |
//! |---|---|
//! | [`handler`] | [`Handler`], [`handler_fn`], [`Received`]: what a service writes |
//! | [`batch`] | [`BatchHandler`]: many events in one transaction (feature `jetstream`) |
//! | [`router`] | [`Router`]: one handler for each type of event |
//! | [`failure`] | [`HandlerError`] and whose [`Fault`] it is |
//! | [`layer`] | [`InboxLayer`]: the tower layer that makes it once |
//! | [`delivery`] | what the layer takes, and what it hands in |
//! | [`dead_letter`] | [`DeadLetters`]: what was given up, and how to get at it |
//! | [`consumer`] | [`Consumer`]: events from JetStream; lanes, retries, pauses (feature `jetstream`) |
//! | [`consumer::status`] | [`Status`](consumer::Status): how a consumer is, for health endpoints |
//! | [`metrics`](mod@metrics) | its numbers, for any exporter |
//! | [`streams`] | [`StreamSpec`](streams::StreamSpec): streams for work queues, fan-out and event logs |
//! | [`generation`] | building a projection again |
//! | `http` | `IdempotencyLayer`: HTTP requests that take effect once (feature `http`) |
//! | [`migrations`](mod@migrations) | the tables |
//! | `pooler` | whether a pool's sessions are its own |
//! | `retention` | removes what was handled long ago |
//! | `place` | where a message is stored in a stream |
//! | `store`, `kept`, `session` | the statements, and the connections they run on |

#[cfg(feature = "jetstream")]
pub mod batch;
#[cfg(feature = "jetstream")]
pub mod consumer;
pub mod dead_letter;
pub mod delivery;
#[cfg_attr(not(feature = "jetstream"), allow(dead_code))]
mod error;
pub mod failure;
#[cfg(feature = "jetstream")]
pub mod generation;
pub mod handler;
#[cfg(feature = "http")]
pub mod http;
mod kept;
pub mod layer;
#[cfg(feature = "jetstream")]
pub mod metrics;
pub mod migrations;
#[cfg(feature = "jetstream")]
mod place;
mod pooler;
mod retention;
pub mod router;
mod session;
#[cfg_attr(not(feature = "jetstream"), allow(dead_code))]
mod store;
#[cfg(feature = "jetstream")]
pub mod streams;

#[cfg(feature = "jetstream")]
pub use batch::{BatchHandler, batch_fn};
#[cfg(feature = "jetstream")]
pub use consumer::{Consumer, ConsumerConfig, ConsumerError, Order};
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
