use pillarbox_event::EventError;
use pillarbox_store::SchemaError;

/// Why an event was not written. After [`Event`](Self::Event), [`Id`](Self::Id) and [`Schema`](Self::Schema), the
/// transaction is untouched. After [`Database`](Self::Database) and [`Client`](Self::Client), it must be rolled back.
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
    /// The same as [`Database`](Self::Database), from a client other than sqlx.
    #[error("event {id} ({event_type}) was not written to the outbox; roll the transaction back")]
    Client {
        /// The event's id.
        id: String,
        /// The event's type.
        event_type: String,
        /// What the client said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
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
    /// The event would be due beyond the calendar. The transaction is untouched.
    #[error(
        "an event cannot be due {due}: a due time must be before the year 10000, and a duration at most 7,000 years; give \
         an earlier time or a shorter duration"
    )]
    DueTime {
        /// When it would be due.
        due: String,
    },
    /// The database refused to cancel a scheduled event, or the connection is lost. Roll the transaction back.
    #[error(
        "it is not known whether the scheduled event {id} was cancelled; roll the transaction back"
    )]
    NotCancelled {
        /// The event's id.
        id: String,
        /// What sqlx said.
        #[source]
        source: sqlx::Error,
    },
}
