//! Why shipping stops and starts again.

use crate::cursor::Cursor;
use crate::lease::LeaseError;
use crate::refused::Refused;
use crate::sink::SinkError;
use crate::streams::Untold;

/// Why shipping stops and starts again after the last row that is known to be stored.
pub(crate) enum Interrupted {
    /// The database failed, or the lease was lost.
    Lease(LeaseError),
    Broker(SinkError),
    Refused(Box<(Cursor, Refused)>),
    /// A stream has lost messages that it had acknowledged.
    Forgotten(Forgotten),
    /// There is a new connection to the broker, whose streams may have lost messages.
    Reconnected,
}

impl From<sqlx::Error> for Interrupted {
    fn from(error: sqlx::Error) -> Self {
        Self::Lease(error.into())
    }
}

impl From<LeaseError> for Interrupted {
    fn from(error: LeaseError) -> Self {
        Self::Lease(error)
    }
}

/// The loss of acknowledged messages by a stream.
#[derive(Debug)]
pub(crate) struct Forgotten {
    pub(crate) stream: String,
    pub(crate) how: String,
    /// The sequence that the stream has now, if an acknowledgement showed it.
    pub(crate) now_at: Option<u64>,
}

impl From<SinkError> for Interrupted {
    fn from(error: SinkError) -> Self {
        match error {
            SinkError::WentBack { stream, sequence, before } => Self::Forgotten(Forgotten {
                how: format!("it acknowledges sequence {sequence}, and had acknowledged {before}"),
                stream,
                now_at: Some(sequence),
            }),
            error => Self::Broker(error),
        }
    }
}

impl From<Untold> for Interrupted {
    fn from(error: Untold) -> Self {
        Self::Broker(error.into())
    }
}
