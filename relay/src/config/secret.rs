//! Secrets, and URLs that hold them, in a form that may be shown.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// The text that is shown instead of a secret.
pub const MASK: &str = "***";

/// A token or a password. When shown, logged or serialised, it is `***`. Only [`reveal`](Self::reveal) returns it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(secret: String) -> Self {
        Self(secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

/// Parameters of a database URL that may be shown.
const HARMLESS: [&str; 13] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "port",
    "dbname",
    "application_name",
];

/// A URL without its user, password and parameters, for logs. A part that may be a secret is left out.
pub fn without_secrets(url: &str) -> String {
    each(url, |parts| format!("{}{}", parts.scheme, parts.place))
}

/// A URL with `***` in place of its secrets: a database's password, the whole login to the broker, and parameters that
/// are not known to be harmless.
pub fn masked(url: &str) -> String {
    each(url, |parts| {
        let user = match (parts.login, parts.scheme.starts_with("postgres")) {
            (None, _) => String::new(),
            (Some(login), true) => match login.split_once(':') {
                Some((user, _)) => format!("{user}:{MASK}@"),
                None => format!("{login}@"),
            },
            // The user may be a token, or the first part of one.
            (Some(_), false) => format!("{MASK}@"),
        };
        let mut shown = format!("{}{user}{}", parts.scheme, parts.place);
        let mut parted = '?';
        for parameter in parts.parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            // A parameter without a value, or with an unknown name, may be part of a secret.
            let (name, value) = match parameter.split_once('=') {
                Some((name, value)) if HARMLESS.contains(&name) => (name, value),
                Some((name, _)) if SECRET.contains(&name) => (name, MASK),
                _ => (MASK, ""),
            };
            shown.push_str(&format!(
                "{parted}{name}{}{value}",
                if value.is_empty() { "" } else { "=" }
            ));
            parted = '&';
        }
        shown
    })
}

/// Known parameters of a database URL whose values are not shown.
const SECRET: [&str; 2] = ["password", "options"];

struct Parts<'u> {
    scheme: &'u str,
    login: Option<&'u str>,
    /// Host, port and path.
    place: String,
    parameters: &'u str,
}

fn each(urls: &str, show: impl Fn(&Parts<'_>) -> String) -> String {
    // A database's URL is a single URL, even if it holds commas.
    if urls.starts_with("postgres") {
        return one(urls, &show);
    }
    let pieces = || urls.split(',').map(str::trim);
    // If the text after a comma is not a URL of its own, the comma may be part of a password.
    let ambiguous = urls.contains('@') && pieces().any(|url| !url.contains("://"));
    if ambiguous && pieces().count() > 1 {
        return MASK.to_owned();
    }
    pieces().map(|url| one(url, &show)).collect::<Vec<_>>().join(",")
}

fn one(url: &str, show: &impl Fn(&Parts<'_>) -> String) -> String {
    let (scheme, rest) = match url.find("://") {
        Some(end) => url.split_at(end + 3),
        None => ("", url),
    };
    let (place, parameters) = rest.split_once(['?', '#']).unwrap_or((rest, ""));
    let (authority, path) = place.split_once('/').unwrap_or((place, ""));
    let (login, host) = match authority.rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, authority),
    };
    let plain_scheme = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.:/".contains(&b));
    // An @ after the host may end a password that holds a character which would end the host.
    let strayed = path.contains('@') || parameters.contains('@') || parameters.contains('#');
    if !plain_scheme || strayed || !is_host(host) {
        return format!("{}{MASK}", if plain_scheme { scheme } else { "" });
    }
    let place = format!("{host}{}", &place[authority.len()..]);
    show(&Parts { scheme, login, place, parameters })
}

/// Whether these are hosts, with or without ports, separated by commas, and not part of a password.
fn is_host(hosts: &str) -> bool {
    hosts.split(',').all(is_one_host)
}

fn is_one_host(host: &str) -> bool {
    let after = if host.starts_with('[') {
        host.split_once(']').map_or(":", |(_, after)| after)
    } else {
        host.find(':').map_or("", |colon| &host[colon..])
    };
    after.is_empty()
        || after
            .strip_prefix(':')
            .is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_secret_stays_readable() {
        for (url, bare, shown) in [
            ("postgres://localhost/x", "postgres://localhost/x", "postgres://localhost/x"),
            (
                "postgres://app:hunter2@db:5432/shop?sslmode=verify-full&password=hunter3",
                "postgres://db:5432/shop",
                "postgres://app:***@db:5432/shop?sslmode=verify-full&password=***",
            ),
            (
                "postgres://app@/shop?host=/run",
                "postgres:///shop",
                "postgres://app@/shop?host=/run",
            ),
            (
                "nats://token4@a:4222,nats://u:p5@b:4222, nats://c:4222",
                "nats://a:4222,nats://b:4222,nats://c:4222",
                "nats://***@a:4222,nats://***@b:4222,nats://c:4222",
            ),
            ("a:4222,b", "a:4222,b", "a:4222,b"),
            ("tls://[::1]:4222", "tls://[::1]:4222", "tls://[::1]:4222"),
        ] {
            assert_eq!(without_secrets(url), bare);
            assert_eq!(masked(url), shown);
        }
    }

    #[test]
    fn what_cannot_be_told_apart_is_left_out() {
        for url in [
            "postgres://app:p?hunter2@db/shop",
            "postgres://app:p#hunter2@db/shop",
            "postgres://app:p/hunter2@db/shop",
            "postgres://app:hunter2",
            "postgres://app:hunter2@db/shop?hunter2",
            "nats://u:hunter2,x@b:4222",
            "nats://hunter2,x@b:4222",
            "hunter2 ://u@b",
        ] {
            for shown in [without_secrets(url), masked(url)] {
                assert!(!shown.contains("hunter2"), "{url} as {shown}");
            }
        }
    }

    #[test]
    fn a_secret_shows_only_when_it_is_asked_for() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), MASK);
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
        assert_eq!(secret.reveal(), "hunter2");
    }
}
