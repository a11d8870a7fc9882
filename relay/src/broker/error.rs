//! Why there is no connection to the broker, and what to do about it.

use std::path::PathBuf;

use async_nats::{ConnectError, ConnectErrorKind};

use super::login::Login;
use crate::config::NatsConfig;
use crate::tls::{self, Remedies};

/// Why the relay could not connect to the broker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// `nats_url` is not a valid URL.
    #[error("nats_url = {url:?} cannot be used")]
    Url {
        /// The URL, without secrets.
        url: String,
        /// What is wrong with the URL.
        #[source]
        source: std::io::Error,
    },
    /// A file that the configuration names cannot be used.
    #[error("{key} = {file:?} cannot be used")]
    File {
        /// The setting that names the file.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong with the file.
        #[source]
        source: std::io::Error,
    },
    /// The broker refused the login.
    #[error("the broker at {url} refused {login}; {remedy}")]
    Refused {
        /// The URL, without secrets.
        url: String,
        /// The login that was refused, without secrets.
        login: String,
        /// What to change.
        remedy: &'static str,
        /// What the client said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The TLS handshake failed.
    #[error("no TLS connection to the broker at {url}; {remedy}")]
    Tls {
        /// The URL, without secrets.
        url: String,
        /// What to change.
        remedy: &'static str,
        /// What the client said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The broker accepted the connection and then sent nothing.
    #[error("no connection to the broker at {url}; {remedy}")]
    Silent {
        /// The URL, without secrets.
        url: String,
        /// What to change.
        remedy: &'static str,
        /// What the client said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no connection for another reason.
    #[error("no connection to the broker at {url}")]
    Connect {
        /// The URL, without secrets.
        url: String,
        /// What the client said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BrokerError {
    pub(super) fn connect(
        url: String,
        login: &Login,
        config: &NatsConfig,
        source: ConnectError,
    ) -> Self {
        use ConnectErrorKind::{Authentication, AuthorizationViolation, TimedOut, Tls};
        let kind = source.kind();
        let silent = kind == TimedOut || source.to_string().contains("got nothing");
        let files = (kind == Tls).then_some(TLS.other);
        let tls = tls::remedy(&source, config.cert.is_some(), &TLS).or(files);
        let source = Box::new(source);
        if matches!(kind, Authentication | AuthorizationViolation) {
            return Self::Refused { url, login: login.to_string(), remedy: login.remedy(), source };
        }
        if let Some(remedy) = tls {
            return Self::Tls { url, remedy, source };
        }
        if silent && !config.tls_first {
            let remedy = "the server sent nothing: if it is configured with handshake_first, set nats.tls_first";
            return Self::Silent { url, remedy, source };
        }
        Self::Connect { url, source }
    }
}

const TLS: Remedies = Remedies {
    unknown_issuer: "nats.ca must hold the certificate of the authority that signed the server's certificate",
    other_name: "the server's certificate is for other names: use one of them in nats_url",
    certificate_wanted: "the server requires a client certificate: set nats.cert and nats.key",
    certificate_refused: "the server does not accept nats.cert: it must be valid and signed by an authority that the \
                          server trusts",
    no_tls: "the server does not speak TLS, or not at the start: check nats.require_tls, nats.tls_first and the URL's \
             scheme",
    other: "check nats.ca, nats.cert and nats.key",
};
