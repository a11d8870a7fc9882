//! SeaORM 2.

use pillarbox_event::{EventId, IntoEvent};
use pillarbox_outbox::{Outbox, OutboxError};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement};

/// Why an event was not published. Nothing has been written then.
#[derive(Debug, thiserror::Error)]
pub enum NotPublished {
    /// The event is refused.
    #[error(transparent)]
    Event(#[from] OutboxError),
    /// The database refused it, or did not answer.
    #[error("writing the event to the outbox: {0}")]
    Database(#[from] DbErr),
    /// Another statement ran in place of this one.
    #[error("the event was not written: {0} rows were, and not one")]
    Rows(u64),
}

/// Writes an event in a transaction, and returns its id.
pub async fn publish(
    tx: &DatabaseTransaction,
    event: impl IntoEvent,
) -> Result<EventId, NotPublished> {
    let outbox = Outbox::new();
    let row = outbox.row(event)?;
    let values = [
        row.event_id().into(),
        row.event_type().into(),
        row.topic().into(),
        row.key().map(str::to_owned).into(),
        row.headers().into(),
        row.payload().to_vec().into(),
    ];
    let insert =
        Statement::from_sql_and_values(DbBackend::Postgres, outbox.insert_statement(), values);
    let rows = tx.execute_raw(insert).await?.rows_affected();
    if rows == 1 { Ok(row.id().clone()) } else { Err(NotPublished::Rows(rows)) }
}
