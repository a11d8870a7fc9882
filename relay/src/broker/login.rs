//! Turns the configuration into the client's options. Files are read again for each new connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{ConnectOptions, ServerAddr};
use nkeys::{KeyPair, KeyPairType};
use percent_encoding::percent_decode_str;

use super::BrokerError;
use crate::config::NatsConfig;

/// The login that the client uses, in words without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Login {
    None,
    Url,
    Credentials(PathBuf),
    Nkey { public: String, file: PathBuf },
    Token(&'static str),
    User { user: String, password: &'static str },
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("a client without a login"),
            Self::Url => f.write_str("the login in nats_url"),
            Self::Credentials(file) => write!(f, "the credentials in {}", file.display()),
            Self::Nkey { public, file } => write!(f, "the nkey {public} ({})", file.display()),
            Self::Token(key) => write!(f, "the token of {key}"),
            Self::User { user, password } => {
                write!(f, "the user {} with {password}", user.escape_debug())
            }
        }
    }
}

impl Login {
    /// What to do if the login is refused.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::None => {
                "set nats.creds, nats.nkey, a token, or nats.user and its password, or nats.cert and nats.key \
                 where the server maps certificates to users"
            }
            Self::Url => "mend the user and password, or the token, in nats_url",
            Self::Credentials(_) => {
                "the user or its account may be unknown, expired or revoked: make a new file, or mend the server"
            }
            Self::Nkey { .. } => "give the server this public key as a user, or mend nats.nkey",
            Self::Token(_) => "mend the token here or on the server",
            Self::User { .. } => "mend nats.user or the password, here or on the server",
        }
    }
}

/// How often the client pings the broker. A connection that loses everything without an error counts as lost after two
/// pings without an answer. With the client's default interval of a minute, the relay would notice that after three
/// minutes.
const PING_INTERVAL: Duration = Duration::from_secs(4);

/// The options with login and TLS, and the login that they use.
pub(super) async fn options(
    config: &NatsConfig,
    servers: &[ServerAddr],
) -> Result<(ConnectOptions, Login), BrokerError> {
    check_certificates(config).await?;
    let (mut options, login) = login(config, servers).await?;
    if let Some(ca) = &config.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let (Some(cert), Some(key)) = (&config.cert, &config.key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    if config.tls_first {
        options = options.tls_first();
    }
    options = options.ping_interval(PING_INTERVAL);
    if let Some(prefix) = &config.inbox_prefix {
        options = options.custom_inbox_prefix(prefix.clone());
    }
    Ok((options.require_tls(config.requires_tls()), login))
}

async fn login(
    config: &NatsConfig,
    servers: &[ServerAddr],
) -> Result<(ConnectOptions, Login), BrokerError> {
    let options = ConnectOptions::new();
    if let Some(file) = &config.creds {
        let text = read("nats.creds", file).await?;
        let options = options.credentials(&text).map_err(|_| {
            // The parser's error may quote the file.
            unusable("nats.creds", file, "it holds no user's JWT and nkey seed")
        })?;
        return Ok((options, Login::Credentials(file.clone())));
    }
    if let Some(file) = &config.nkey {
        let text = read("nats.nkey", file).await?;
        let line = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
        let pair = line.and_then(|seed| Some((seed, KeyPair::from_seed(seed).ok()?)));
        let Some((seed, pair)) = pair.filter(|(_, pair)| pair.key_pair_type() == KeyPairType::User)
        else {
            return Err(unusable("nats.nkey", file, "it holds no seed of a user's nkey, SU…"));
        };
        let login = Login::Nkey { public: pair.public_key(), file: file.clone() };
        return Ok((options.nkey(seed.to_owned()), login));
    }
    if let Some(token) = &config.token {
        return Ok((options.token(token.reveal().to_owned()), Login::Token("nats.token")));
    }
    if let Some(file) = &config.token_file {
        let token = read_line("nats.token_file", file).await?;
        return Ok((options.token(token), Login::Token("nats.token_file")));
    }
    if let Some(user) = &config.user {
        let (key, password) = match (&config.password, &config.password_file) {
            (Some(password), _) => ("nats.password", password.reveal().to_owned()),
            (None, Some(file)) => {
                ("nats.password_file", read_line("nats.password_file", file).await?)
            }
            // `NatsConfig::validate` refuses this.
            (None, None) => ("no password", String::new()),
        };
        let login = Login::User { user: user.clone(), password: key };
        return Ok((options.user_and_password(user.clone(), password), login));
    }
    // The client does not take a login from a URL by itself.
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let named = servers.iter().find_map(|server| Some((server.username()?, server.password())));
    Ok(match named {
        Some((user, Some(password))) => {
            (options.user_and_password(plain(user), plain(password)), Login::Url)
        }
        Some((token, None)) => (options.token(plain(token)), Login::Url),
        None => (options, Login::None),
    })
}

/// Checks the files for TLS, because the client's error would not name the file at fault.
async fn check_certificates(config: &NatsConfig) -> Result<(), BrokerError> {
    for (key, file) in [("nats.ca", &config.ca), ("nats.cert", &config.cert)] {
        let Some(file) = file else { continue };
        let text = read(key, file).await?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        if found.is_ok_and(|found| !found.is_empty()) {
            continue;
        }
        return Err(unusable(key, file, "it holds no certificate in PEM form"));
    }
    if let Some(file) = &config.key {
        let text = read("nats.key", file).await?;
        if PrivateKeyDer::from_pem_slice(text.as_bytes()).is_err() {
            return Err(unusable("nats.key", file, "it holds no private key in PEM form"));
        }
    }
    Ok(())
}

async fn read(key: &'static str, file: &Path) -> Result<String, BrokerError> {
    tokio::fs::read_to_string(file).await.map_err(|source| BrokerError::File {
        key,
        file: file.to_owned(),
        source,
    })
}

/// The secret in a file that contains nothing else, without the line's end.
async fn read_line(key: &'static str, file: &Path) -> Result<String, BrokerError> {
    let text = read(key, file).await?;
    let line = text.trim_end_matches(['\n', '\r']);
    if line.is_empty() {
        return Err(unusable(key, file, "it is empty"));
    }
    Ok(line.to_owned())
}

fn unusable(key: &'static str, file: &Path, problem: &'static str) -> BrokerError {
    let source = std::io::Error::new(std::io::ErrorKind::InvalidData, problem);
    BrokerError::File { key, file: file.to_owned(), source }
}
