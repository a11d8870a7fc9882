use pillarbox_event::EventError;
use pillarbox_store::SchemaError;

/// Why an event was not written. The transaction is as usable as Postgres leaves it: untouched after
/// [`Event`](Self::Event), [`Id`](Self::Id) and [`Schema`](Self::Schema), to be rolled back after
/// [`Database`](Self::Database).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The event is refused; nothing was sent to the database.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The outbox holds events whose id is a UUID.
    #[error(
        "event id {id:?} is not a UUID, and the outbox takes only those; leave the id out to get one"
    )]
    Id {
        /// The id.
        id: String,
    },
    /// The schema's name is refused.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The database refused the row, or is gone. If the table is missing: run `pillarbox migrate outbox`.
    #[error("event {id} ({event_type}) was not written to the outbox")]
    Database {
        /// The event's id; the first one's, of several.
        id: String,
        /// The event's type; the first one's, of several.
        event_type: String,
        /// What sqlx said.
        #[source]
        source: sqlx::Error,
    },
}
