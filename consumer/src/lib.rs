//! Events from JetStream: pulled, bounded, in order per key, handled once, acknowledged after the commit.
//!
//! The events of one key run one after the other, and different keys run in parallel. An event that fails waits in the
//! process and holds back only its own key. Meanwhile the consumer tells the server that the event is in progress.
//! While the database is away, the consumer pauses: it starts no handler, counts no attempt, checks from time to time
//! whether the database is back, and then continues. [`pillarbox_inbox`] makes each event take effect once.
//!
//! ```no_run
//! use pillarbox_consumer::Consumer;
//! use pillarbox_event::Event;
//! use pillarbox_inbox::{HandlerError, Tx};
//! use tokio_util::sync::CancellationToken;
//!
//! #[derive(Event, serde::Serialize, serde::Deserialize)]
//! #[event(type = "order.placed", topic = "orders.placed", key = order)]
//! struct OrderPlaced { order: i64, cents: i64 }
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
//! let shutdown = CancellationToken::new();
//! Consumer::new(client, pool, "ORDERS", "payments")?
//!     .on(charge)
//!     .run(shutdown)
//!     .await?;
//! # Ok(())
//! # }
//! ```
//!
//! | module | concept |
//! |---|---|
//! | [`Consumer`], [`ConsumerConfig`] | what a service runs, and its settings |
//! | [`status`] | [`ConsumerStatus`]: a consumer's state and progress, for health endpoints |
//! | [`metrics`](mod@metrics) | a consumer's metrics, for any exporter |
//! | [`streams`] | [`StreamSpec`](streams::StreamSpec): streams for work queues, fan-out and event logs |
//! | [`generation`] | building a projection again from the event log |

mod after_failure;
mod beginning;
mod config;
mod consumer;
mod control;
mod difference;
mod driver;
mod durable;
mod endings;
mod error;
pub mod generation;
mod interrupted;
mod journal;
mod measure;
mod message;
pub mod metrics;
mod one_by_one;
mod parked_events;
mod partitions;
mod place;
mod places;
mod reader;
mod removed;
mod scheduler;
pub mod status;
mod stored;
mod stream_settings;
pub mod streams;
mod subjects;
mod subscription;
mod unhandled;
mod unreadable;
mod worker;

pub use config::{AfterLoss, ConsumerConfig, HandlingOrder};
pub use consumer::Consumer;
pub use error::ConsumerError;
pub use metrics::Totals;
pub use status::{
    ConsumerState, ConsumerStatus, Lag, LastError, Partitions, PausedType, Removed, Watch,
};
pub use unhandled::Unhandled;
