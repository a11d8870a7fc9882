//! Why a relay could not start, or ended.

use crate::broker::BrokerError;
use crate::config::{ConfigError, without_secrets};
use crate::lease::LeaseError;

/// Why a relay does not run. Unless [`fail_fast`](crate::RelayConfig::fail_fast) is set, only
/// [`Config`](Self::Config) and [`Url`](Self::Url) end it; all others are logged, and tried again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `database_url` or `nats_url` is not one.
    #[error("{key} cannot be used")]
    Url {
        /// The setting's name.
        key: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database cannot be reached.
    #[error("no connection to the database at {url}")]
    Connect {
        /// The URL, without secrets.
        url: String,
        /// What sqlx said.
        #[source]
        source: sqlx::Error,
    },
    /// The server is a hot standby: its snapshots say nothing about the primary's transactions.
    #[error("the database at {url} is a hot standby; give the relay the primary's address")]
    Standby {
        /// The URL, without secrets.
        url: String,
    },
    /// The tables are not there.
    #[error(
        "there is no outbox in schema {schema:?} of the database at {url}; run `pillarbox migrate outbox`"
    )]
    NotMigrated {
        /// The schema.
        schema: String,
        /// The URL, without secrets.
        url: String,
    },
    /// A statement failed.
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
    /// The broker cannot be reached.
    #[error(transparent)]
    Broker(BrokerError),
    /// The lease, or the cursor under it, could not be kept.
    #[error("not the leader any more")]
    Lease(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl RelayError {
    pub(crate) fn connect(url: &str, source: sqlx::Error) -> Self {
        Self::Connect { url: without_secrets(url), source }
    }

    /// Whether trying again cannot help.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Url { .. })
    }
}

impl From<sqlx::Error> for RelayError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<LeaseError> for RelayError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Database(error) => Self::Database(error),
            error => Self::Lease(Box::new(error)),
        }
    }
}

impl From<BrokerError> for RelayError {
    fn from(error: BrokerError) -> Self {
        match error {
            error @ BrokerError::Url { .. } => {
                Self::Url { key: "nats_url", source: Box::new(error) }
            }
            error => Self::Broker(error),
        }
    }
}

/// An error with all its sources, on one line.
pub fn full_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}
