//! Why a relay could not start, or why it ended.

use crate::broker::BrokerError;
use crate::config::{ConfigError, without_secrets};
use crate::health::TroubleWith;
use crate::lease::LeaseError;
use crate::session::SessionError;
use crate::tls::{self, Remedies};

/// Why a relay does not run. [`Config`](Self::Config) and [`Url`](Self::Url) end it. A pooler in transaction mode ends
/// it only at the start, as does every error with [`fail_fast`](crate::RelayConfig::fail_fast). The relay logs all
/// other errors and tries again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `database_url` or `nats_url` is not a valid URL.
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
    /// The database and the relay could not agree on TLS.
    #[error("no TLS connection to the database at {url}; {remedy}")]
    Tls {
        /// The URL, without secrets.
        url: String,
        /// What to change.
        remedy: &'static str,
        /// What sqlx said.
        #[source]
        source: sqlx::Error,
    },
    /// The relay cannot use the connection: it goes through a pooler in transaction mode, or the server refuses a
    /// parameter that the relay sets.
    #[error(transparent)]
    Session(SessionError),
    /// The server is a hot standby: its snapshots say nothing about the primary's transactions.
    #[error("the database at {url} is a hot standby; give the relay the primary's address")]
    Standby {
        /// The URL, without secrets.
        url: String,
    },
    /// The tables do not exist.
    #[error(
        "there is no outbox in schema {schema:?} of the database at {url}; run `pillarbox migrate outbox`"
    )]
    NotMigrated {
        /// The schema.
        schema: String,
        /// The URL, without secrets.
        url: String,
    },
    /// Policies may hide rows of the relay's tables from its role.
    #[error(transparent)]
    Hidden(#[from] pillarbox_store::HiddenRows),
    /// The relay's tables exist, but the relay cannot work with them: the cursor was overwritten with something else,
    /// or the table of the dead letters has refused too many of them.
    #[error("the relay's tables are not as they must be")]
    Tables(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A statement failed.
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
    /// The broker cannot be reached.
    #[error(transparent)]
    Broker(BrokerError),
    /// The lease could not be kept, or the cursor could not be saved under it.
    #[error("not the leader any more")]
    Lease(#[source] Box<dyn std::error::Error + Send + Sync>),
}

const TLS: Remedies = Remedies {
    unknown_issuer: "sslrootcert must hold the certificate of the authority that signed the server's certificate",
    other_name: "the server's certificate is for other names: use one of them in database_url, or sslmode=verify-ca",
    certificate_wanted: "the server requires a client certificate: set sslcert and sslkey",
    certificate_refused: "the server does not accept sslcert: it must be valid and signed by an authority that the \
                          server trusts",
    no_tls: "the server must offer TLS, or sslmode must allow a connection without it",
    other: "check sslmode, sslrootcert, sslcert and sslkey",
};

impl RelayError {
    pub(crate) fn session(database_url: &str, error: SessionError) -> Self {
        match error {
            SessionError::Url(error) => Self::Config(error),
            SessionError::Connect { source, .. } => Self::connect(database_url, source),
            error => Self::Session(error),
        }
    }

    fn connect(database_url: &str, source: sqlx::Error) -> Self {
        let url = without_secrets(database_url);
        let certified = ["sslcert=", "ssl-cert="].iter().any(|name| database_url.contains(name));
        let unsupported = matches!(source, sqlx::Error::Tls(_)).then_some(TLS.no_tls);
        match tls::remedy(&source, certified, &TLS).or(unsupported) {
            Some(remedy) => Self::Tls { url, remedy, source },
            None => Self::Connect { url, source },
        }
    }

    /// The part that has failed.
    pub(crate) fn trouble_with(&self) -> TroubleWith {
        match self {
            Self::Broker(_) => TroubleWith::Broker,
            Self::Lease(_) => TroubleWith::Lease,
            _ => TroubleWith::Database,
        }
    }

    /// Whether the error stays however often the relay tries again.
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
            error @ (LeaseError::Cursor { .. } | LeaseError::Refusing(_)) => {
                Self::Tables(Box::new(error))
            }
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
