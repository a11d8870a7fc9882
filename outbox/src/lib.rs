//! Writes events in the same Postgres transaction as the business data.
//!
//! ```no_run
//! use pillarbox_event::Event;
//!
//! #[derive(Event, serde::Serialize)]
//! #[event(type = "order.placed", topic = "orders.placed", key = order)]
//! struct OrderPlaced { order: i64 }
//!
//! # async fn place(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! let mut tx = pool.begin().await?;
//! sqlx::query("insert into orders (id) values ($1)").bind(42_i64).execute(&mut *tx).await?;
//! pillarbox_outbox::publish(&mut tx, OrderPlaced { order: 42 }).await?;
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! After the commit both rows are there, or neither is. A relay ships what was committed, and never what was
//! rolled back. `publish` takes a transaction, so code that publishes outside of one does not compile:
//!
//! ```compile_fail,E0277
//! # async fn place(pool: sqlx::PgPool, event: pillarbox_event::RawEvent) {
//! let mut connection = pool.acquire().await.unwrap();
//! pillarbox_outbox::publish(&mut connection, event).await.unwrap();
//! # }
//! ```
//!
//! # Order
//! Events with the same key are delivered in the order in which their transactions committed, provided that
//! the writers of a key serialise. They do if each of them first updates or locks the row that the key stands
//! for. Two transactions that insert events with the same key without touching a common row have no order.
//!
//! # Scheduled events
//! [`publish_in`] and [`publish_at`] write an event that is delivered later, and [`cancel`] takes it back, all in the
//! caller's transaction:
//!
//! ```no_run
//! # use std::time::Duration;
//! # use pillarbox_event::Event;
//! #[derive(Event, serde::Serialize)]
//! #[event(type = "payment.overdue", topic = "orders.overdue", key = order)]
//! struct PaymentOverdue { order: i64 }
//!
//! # async fn place(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! let mut tx = pool.begin().await?;
//! let overdue = PaymentOverdue { order: 42 };
//! let timer = pillarbox_outbox::publish_in(&mut tx, overdue, Duration::from_secs(15 * 60)).await?;
//! tx.commit().await?;
//!
//! // The payment arrives in time.
//! let mut tx = pool.begin().await?;
//! if !pillarbox_outbox::cancel(&mut tx, &timer).await? {
//!     // Too late: the event has left, and its handler decides.
//! }
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | module | concept |
//! |---|---|
//! | [`schedule`](mod@schedule) | [`publish_at`], [`publish_in`], [`cancel`]: events that leave later |
//! | [`publish`](mod@publish) | [`publish()`](publish::publish), [`publish_all`], [`publish_with_commit`], and [`Outbox`] for another schema or a default source |
//! | [`OutboxRow`] | what is written for an event, for any client of Postgres |
//! | `tokio_postgres` | publishing in a transaction of tokio-postgres (feature `tokio-postgres`) |
//! | [`migrations`](mod@migrations) | the tables |
//! | [`testing`] | what a transaction has published, for tests |

mod error;
pub mod migrations;
pub mod publish;
mod row;
#[cfg(feature = "tokio-postgres")]
pub mod tokio_postgres;

pub use error::OutboxError;
pub use migrations::{migrate, migrate_schema, migrations};
pub use pillarbox_store::{InTransaction, Migrated, Savepoint, SchemaError, Tx};
pub use publish::{Outbox, publish, publish_all, publish_with_commit};
pub use row::OutboxRow;

pub mod schedule;
pub mod testing;
pub use schedule::{cancel, publish_at, publish_in};
