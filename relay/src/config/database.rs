//! The parameters of a database URL. The database client only warns of one that it does not know, so that
//! `sslmod=verify-full` would quietly turn verification off.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use sqlx::postgres::PgConnectOptions;

use super::ConfigError;
use super::keys::nearest;
use super::secret::{MASK, masked};

/// Those that the client knows.
const KNOWN: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Those of libpq that the client does without: it ignores them, with a warning. None holds a secret.
const IGNORED: [&str; 12] = [
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "sslnegotiation",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// The files that a URL names. A certificate may also stand in the URL itself.
pub(super) fn files(url: &str) -> Vec<(&'static str, PathBuf)> {
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    parameters
        .split('&')
        .filter_map(|parameter| parameter.split_once('='))
        .filter(|(name, _)| name.starts_with("ssl") && !matches!(*name, "sslmode" | "ssl-mode"))
        .map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned())
        .filter(|value| !value.starts_with("-----BEGIN"))
        .map(|value| ("database_url", PathBuf::from(value)))
        .collect()
}

pub(super) fn validate(url: &str) -> Result<(), ConfigError> {
    let fail = |problem| Err(ConfigError { key: "database_url", value: masked(url), problem });
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        let problem = "it is postgres://user:password@host:port/database".to_owned();
        return Err(ConfigError { key: "database_url", value: MASK.to_owned(), problem });
    }
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    for (at, parameter) in parameters.split('&').enumerate() {
        let name = match parameter.split_once('=') {
            Some((name, _)) => name,
            None if parameter.is_empty() => continue,
            None => "",
        };
        if KNOWN.contains(&name) || name.starts_with("options[") || IGNORED.contains(&name) {
            continue;
        }
        if name == "sslpassword" {
            return fail(
                "unknown parameter `sslpassword`: give a key without a passphrase".to_owned(),
            );
        }
        // What is not near a known one may be a piece of a password, and is not named.
        return fail(match nearest(name, KNOWN) {
            Some(known) => format!("unknown parameter `{name}`; did you mean `{known}`?"),
            None => format!(
                "parameter {} is unknown; leave it out, or, if it is a piece of a password, percent-encode what \
                 parts it from the rest",
                at + 1
            ),
        });
    }
    // What the parser says of a wrong URL names no secret.
    match url.parse::<PgConnectOptions>() {
        Ok(_) => Ok(()),
        Err(error) => fail(crate::error::full_text(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_parameters_are_refused_by_name() {
        for fine in [
            "postgres://localhost/x",
            "postgresql://u:p@h:1/x?sslmode=verify-full&sslrootcert=/ca.pem&options[search_path]=x",
            "postgres://h/x?sslmode=require&channel_binding=require",
        ] {
            validate(fine).unwrap();
        }
        for (wrong, said) in [
            ("mysql://u:hunter2@h/x", "it is postgres://"),
            ("postgres://u:hunter2@h/x?sslmod=verify-full", "did you mean `sslmode`?"),
            ("postgres://u:hunter2@h/x?sslpassword=hunter2", "unknown parameter `sslpassword`"),
            ("postgres://u:hunter2@h/x?sslmode=maybe", "maybe"),
            ("postgres://u:hunter2@h:abc/x", "port"),
            ("postgres://u:p?hunter2=1@h/x", "percent-encode"),
            ("postgres://u:hunter2@h/x?port=1&hunter2", "parameter 2 is unknown"),
        ] {
            let error = validate(wrong).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
        }
    }
}
