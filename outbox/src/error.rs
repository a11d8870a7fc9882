use pillarbox_event::EventError;
use pillarbox_store::SchemaError;

/// Why an event was not written. After [`Event`](Self::Event), [`Id`](Self::Id) and [`Schema`](Self::Schema), the
/// transaction is untouched. After [`Database`](Self::Database), it must be rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The event is refused. Nothing was sent to the database.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The event's id is not a UUID. The outbox holds only events whose id is one.
    #[error(
        "event id {id:?} is not a UUID, and the outbox takes only UUIDs; leave the id out to get a new one"
    )]
    Id {
        /// The id.
        id: String,
    },
    /// The schema's name is refused.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The database refused the row, or the connection is lost. If the table is missing, run
    /// `pillarbox migrate outbox`.
    #[error("event {id} ({event_type}) was not written to the outbox; roll the transaction back")]
    Database {
        /// The event's id. If there were several events, the id of the first.
        id: String,
        /// The event's type. If there were several events, the type of the first.
        event_type: String,
        /// What sqlx said.
        #[source]
        source: sqlx::Error,
    },
}
