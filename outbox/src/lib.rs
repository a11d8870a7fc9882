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
//! Both rows are there after the commit, or neither is. A relay ships what was committed; what was rolled
//! back was never there. It takes a transaction, so an event outside of one does not compile:
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
//! the writers of a key serialise: they do when each first updates the row that the key stands for, or locks
//! it. Two transactions that insert events of one key without touching a common row have no order between
//! them.
//!
//! | module | concept |
//! |---|---|
//! | [`publish`](mod@publish) | [`publish()`](publish::publish), [`publish_all`], and [`Outbox`] for a schema or a source of one's own |
//! | [`migrations`](mod@migrations) | the tables |

mod error;
pub mod migrations;
pub mod publish;

pub use error::OutboxError;
pub use migrations::{migrate, migrations};
pub use pillarbox_store::{Migrated, SchemaError};
pub use publish::{Outbox, publish, publish_all};
