//! The transaction of a handler.

use sqlx::{Postgres, Transaction};

/// The transaction that a handler writes in, and publishes in. The inbox commits it after success.
///
/// Queries go to `&mut **tx`; `pillarbox_outbox::publish(tx, …)` takes it as it is.
pub type Tx = Transaction<'static, Postgres>;
