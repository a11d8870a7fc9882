//! Events from JetStream: pulled, bounded, in order per key, handled once, acknowledged after the commit.
//!
//! The events of one key run one after the other, and different keys run in parallel. An event that fails waits in the
//! process and holds back only its own key. Meanwhile the consumer tells the server that the event is in progress.
//! While the database is away, the consumer pauses: it starts no handler, counts no attempt, checks from time to time
//! whether the database is back, and then continues. [`pillarbox_inbox`] makes each event take effect once.
//!
//! ```no_run
//! use std::borrow::Cow;
//! use pillarbox_consumer::{Consumer, ConsumerConfig};
//! use pillarbox_event::Event;
//! use pillarbox_inbox::{HandlerError, Router, Tx, handler_fn};
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
//! | [`Consumer`], [`ConsumerConfig`] | what a service runs, and its settings |
//! | [`status`] | [`Status`]: a consumer's state and progress, for health endpoints |
//! | [`metrics`](mod@metrics) | a consumer's metrics, for any exporter |
//! | [`streams`] | [`StreamSpec`](streams::StreamSpec): streams for work queues, fan-out and event logs |
//! | [`generation`] | building a projection again from the event log |

mod beginning;
mod config;
mod consumer;
mod crowding;
mod difference;
mod durable;
mod error;
pub mod generation;
mod incoming;
mod interrupted;
mod journal;
mod lanes;
mod letters;
mod measure;
pub mod metrics;
mod one_by_one;
mod partitions;
mod pause;
mod place;
mod pulse;
mod reader;
mod removed;
mod running;
pub mod status;
mod stored;
mod stream_settings;
pub mod streams;
mod subjects;
mod subscription;
mod unreadable;
mod worker;

pub use config::{AfterLoss, ConsumerConfig, Order};
pub use consumer::Consumer;
pub use error::ConsumerError;
pub use metrics::Totals;
pub use status::{Lag, LastError, Partitions, Removed, State, Status, Watch};
