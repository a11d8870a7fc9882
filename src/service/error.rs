//! Why a service ended.

use super::BoxError;

/// Why a service ended, other than by being told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// A part ended with an error, or a preparation can never succeed.
    #[error("{part} failed")]
    Failed {
        /// The part, such as `consumer payments`.
        part: String,
        /// Its error.
        #[source]
        source: BoxError,
    },
    /// A part that must not end by itself did.
    #[error("{part} ended, and nobody had told it to")]
    Ended {
        /// The part.
        part: String,
    },
    /// A part panicked.
    #[error("{part} panicked: {text}")]
    Panicked {
        /// The part.
        part: String,
        /// What the panic said.
        text: String,
    },
    /// A second signal came before the service had stopped.
    #[error("a second signal ended the service before it had stopped")]
    Interrupted,
    /// The system does not let the process listen to signals.
    #[error("the service cannot listen to signals")]
    Signals(#[source] std::io::Error),
}
