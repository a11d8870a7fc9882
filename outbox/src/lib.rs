//! Writes events in the same Postgres transaction as the business data.
//!
//! ```no_run
//! use std::borrow::Cow;
//! use pillarbox_event::Event;
//!
//! #[derive(serde::Serialize)]
//! struct OrderPlaced { order: i64 }
//!
//! impl Event for OrderPlaced {
//!     const TYPE: &'static str = "order.placed";
//!     fn topic(&self) -> Cow<'_, str> { "orders.placed".into() }
//!     fn key(&self) -> Option<Cow<'_, str>> { Some(self.order.to_string().into()) }
//! }
//!
//! # async fn place(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! let mut tx = pool.begin().await?;
//! sqlx::query("insert into orders (id) values ($1)").bind(42_i64).execute(&mut *tx).await?;
//! pillarbox_outbox::publish(&mut tx, &OrderPlaced { order: 42 }).await?;
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! After the commit both rows are there, or neither is. A relay ships what was committed, and never what was
//! rolled back. `publish` takes a transaction, so code that publishes outside of one does not compile:
//!
//! ```compile_fail,E0308
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
//! | module | concept |
//! |---|---|
//! | [`publish`](mod@publish) | [`publish()`](publish::publish), [`publish_all`], and [`Outbox`] for another schema or a default source |
//! | [`migrations`](mod@migrations) | the tables |

mod error;
pub mod migrations;
pub mod publish;

pub use error::OutboxError;
pub use migrations::{migrate, migrations};
pub use pillarbox_store::{Migrated, SchemaError};
pub use publish::{Outbox, publish, publish_all};
