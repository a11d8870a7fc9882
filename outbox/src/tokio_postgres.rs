//! Publishing in a transaction of tokio-postgres (feature `tokio-postgres`).
//!
//! ```no_run
//! use pillarbox_outbox::tokio_postgres::publish;
//!
//! # #[derive(pillarbox_event::Event, serde::Serialize)]
//! # #[event(type = "order.placed", topic = "orders.placed")]
//! # struct OrderPlaced { order: i64 }
//! async fn place(client: &mut tokio_postgres::Client, order: i64) -> Result<(), Box<dyn std::error::Error>> {
//!     let tx = client.transaction().await?;
//!     tx.execute("insert into orders (id) values ($1)", &[&order]).await?;
//!     publish(&tx, &OrderPlaced { order }).await?;
//!     tx.commit().await?;
//!     Ok(())
//! }
//! ```

use pillarbox_event::{EventId, IntoEvent};
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::error::OutboxError;
use crate::publish::Outbox;

/// Writes an event to the outbox in schema `pillarbox`, in one round trip, and returns its id. It does what
/// [`publish`](crate::publish()) does with sqlx.
///
/// # Errors
/// [`OutboxError`]. Nothing has been written then.
pub async fn publish(tx: &Transaction<'_>, event: impl IntoEvent) -> Result<EventId, OutboxError> {
    publish_to(&Outbox::new(), tx, event).await
}

/// The same for an outbox in another schema, or with a default source.
///
/// # Errors
/// As for [`publish`].
pub async fn publish_to(
    outbox: &Outbox,
    tx: &Transaction<'_>,
    event: impl IntoEvent,
) -> Result<EventId, OutboxError> {
    let row = outbox.row(event)?;
    let written = tx
        .query_typed(
            outbox.insert_statement(),
            &[
                (&row.event_id(), Type::UUID),
                (&row.event_type(), Type::TEXT),
                (&row.topic(), Type::TEXT),
                (&row.key(), Type::TEXT),
                (&row.headers(), Type::TEXT),
                (&&row.payload()[..], Type::BYTEA),
            ],
        )
        .await
        .map_err(|error| row.not_written(error))?;
    match written.first().map(|answer| answer.try_get::<_, Uuid>(0)) {
        Some(Ok(id)) if row.event_id() == id => Ok(row.id().clone()),
        _ => Err(row.another_statement()),
    }
}
