//! diesel-async 0.9.

use diesel::sql_types::{Binary, Nullable, Text, Uuid};
use diesel_async::{AnsiTransactionManager, AsyncPgConnection, RunQueryDsl, TransactionManager};
use pillarbox_event::{EventId, IntoEvent};
use pillarbox_outbox::{Outbox, OutboxError};

/// Why an event was not published. Nothing has been written then.
#[derive(Debug, thiserror::Error)]
pub enum NotPublished {
    /// The event is refused.
    #[error(transparent)]
    Event(#[from] OutboxError),
    /// The database refused it, or did not answer.
    #[error("writing the event to the outbox: {0}")]
    Database(#[from] diesel::result::Error),
    /// An event outside of a transaction would be committed without the rows that it tells of.
    #[error("publish within a transaction: `connection.transaction(…)`")]
    NoTransaction,
    /// Another statement ran in place of this one.
    #[error("the event was not written: {0} rows were, and not one")]
    Rows(usize),
}

/// Writes an event in the transaction that runs on this connection, and returns its id.
pub async fn publish(
    connection: &mut AsyncPgConnection,
    event: impl IntoEvent,
) -> Result<EventId, NotPublished> {
    let status = AnsiTransactionManager::transaction_manager_status_mut(connection);
    if status.transaction_depth()?.is_none() {
        return Err(NotPublished::NoTransaction);
    }
    let outbox = Outbox::new();
    let row = outbox.row(event)?;
    let rows = diesel::sql_query(outbox.insert_statement())
        .bind::<Uuid, _>(row.event_id())
        .bind::<Text, _>(row.event_type())
        .bind::<Text, _>(row.topic())
        .bind::<Nullable<Text>, _>(row.key())
        .bind::<Text, _>(row.headers())
        .bind::<Binary, _>(&row.payload()[..])
        .execute(connection)
        .await?;
    if rows == 1 { Ok(row.id().clone()) } else { Err(NotPublished::Rows(rows)) }
}
