//! The settings for the connection to the broker: TLS and the login.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::secret::MASK;
use super::{ConfigError, Secret};

/// TLS and login for the broker: the table `[nats]`.
///
/// There must be at most one way to log in: [`creds`](Self::creds), [`nkey`](Self::nkey), a token, a user with a
/// password, or a login in `nats_url`. The relay reads the files again for each new connection. `Debug` and
/// serialisation show secrets as `***`. Every field is unset by default, and every switch is off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NatsConfig {
    /// A PEM file with the certificate authorities to trust for the server's certificate. `None`: those that this
    /// machine trusts. Setting it makes TLS required.
    pub ca: Option<PathBuf>,
    /// A PEM file with the client's certificate and any intermediate certificates. Setting it makes TLS required.
    pub cert: Option<PathBuf>,
    /// A PEM file with the private key of `cert`.
    pub key: Option<PathBuf>,
    /// Whether to refuse a connection without TLS. If false, the server decides, unless the URL says `tls://`.
    pub require_tls: bool,
    /// Whether to start with the TLS handshake, before the server sends anything. For servers with `handshake_first`.
    pub tls_first: bool,
    /// A credentials file: a user's JWT and the seed of its nkey.
    pub creds: Option<PathBuf>,
    /// A file with the seed of a user's nkey.
    pub nkey: Option<PathBuf>,
    /// A token.
    pub token: Option<Secret>,
    /// A file with a token.
    pub token_file: Option<PathBuf>,
    /// A user. It needs `password` or `password_file` too.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// A file with the user's password.
    pub password_file: Option<PathBuf>,
    /// The prefix of the subjects on which the broker answers, such as `_INBOX_relay`. No other user should be allowed
    /// to subscribe to it. `None`: `_INBOX`.
    pub inbox_prefix: Option<String>,
    /// The JetStream domain of the streams, if it differs from the server's. Example: the hub's domain, seen from a
    /// leaf node that has a JetStream of its own. `None`: the server's domain.
    pub jetstream_domain: Option<String>,
    /// The prefix of the JetStream API, for an API that another account exports. `None`: `$JS.API`.
    pub api_prefix: Option<String>,
}

impl NatsConfig {
    /// Whether a connection without TLS is refused.
    pub(crate) fn requires_tls(&self) -> bool {
        self.require_tls || self.tls_first || self.ca.is_some() || self.cert.is_some()
    }

    /// The files that these settings name, each with the key that names it.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        [
            ("nats.ca", &self.ca),
            ("nats.cert", &self.cert),
            ("nats.key", &self.key),
            ("nats.creds", &self.creds),
            ("nats.nkey", &self.nkey),
            ("nats.token_file", &self.token_file),
            ("nats.password_file", &self.password_file),
        ]
        .into_iter()
        .filter_map(|(key, path)| Some((key, path.as_ref()?)))
    }

    /// The [files](Self::files) that hold a secret, each with the key that names it.
    pub fn secret_files(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        self.files().filter(|(key, _)| !["nats.ca", "nats.cert"].contains(key))
    }

    /// Refuses settings that are incomplete or contradict each other.
    pub(super) fn validate(&self, url_has_login: bool) -> Result<(), ConfigError> {
        let fail = |key, problem: String| {
            Err(ConfigError { key, value: self.shown(key).unwrap_or_default(), problem })
        };
        let needs = |key, other: &str| fail(key, format!("it needs {other} too"));
        if self.cert.is_some() && self.key.is_none() {
            return needs("nats.cert", "nats.key");
        }
        if self.key.is_some() && self.cert.is_none() {
            return needs("nats.key", "nats.cert");
        }
        let password = self.password.is_some() || self.password_file.is_some();
        if self.user.is_some() && !password {
            return needs("nats.user", "nats.password or nats.password_file");
        }
        let mut ways = Vec::new();
        if url_has_login {
            ways.push("the login in nats_url");
        }
        let keys = ["nats.creds", "nats.nkey", "nats.token", "nats.token_file", "nats.user"];
        for key in keys.into_iter().filter(|key| self.shown(key).is_some()) {
            if let Some(other) = ways.first() {
                return fail(key, format!("{other} is another way to log in; keep one of the two"));
            }
            ways.push(key);
        }
        if let (Some(_), Some(_)) = (&self.password, &self.password_file) {
            return fail(
                "nats.password_file",
                "nats.password is set too; keep one of the two".into(),
            );
        }
        if password && self.user.is_none() {
            let key = if self.password.is_some() { "nats.password" } else { "nats.password_file" };
            return needs(key, "nats.user");
        }
        if self.inbox_prefix.as_deref().is_some_and(|prefix| !is_inbox_prefix(prefix)) {
            return fail(
                "nats.inbox_prefix",
                "it must be one or more words separated by dots, such as _INBOX_relay, without wildcards or spaces"
                    .into(),
            );
        }
        if let Some(domain) = &self.jetstream_domain
            && !is_subject(domain, 1)
        {
            let problem = "it must be one word without dots, spaces or wildcards";
            return fail("nats.jetstream_domain", problem.into());
        }
        if let Some(prefix) = &self.api_prefix {
            if !is_subject(prefix, usize::MAX) {
                let problem = "it must be words separated by dots, without spaces or wildcards";
                return fail("nats.api_prefix", problem.into());
            }
            if self.jetstream_domain.is_some() {
                let problem = "nats.jetstream_domain is set too, and it sets the prefix already; keep one of the two";
                return fail("nats.api_prefix", problem.into());
            }
        }
        for (key, secret) in [("nats.token", &self.token), ("nats.password", &self.password)] {
            if secret.as_ref().is_some_and(|secret| secret.reveal().is_empty()) {
                return fail(key, "it must not be empty".into());
            }
        }
        Ok(())
    }

    /// A value that may be shown, if the key is set.
    fn shown(&self, key: &str) -> Option<String> {
        let file = self.files().find(|(name, _)| *name == key);
        match key {
            "nats.token" => self.token.as_ref().map(|_| MASK.to_owned()),
            "nats.password" => self.password.as_ref().map(|_| MASK.to_owned()),
            "nats.user" => self.user.clone(),
            "nats.jetstream_domain" => self.jetstream_domain.clone(),
            "nats.api_prefix" => self.api_prefix.clone(),
            "nats.inbox_prefix" => self.inbox_prefix.clone(),
            _ => file.map(|(_, path)| path.display().to_string()),
        }
    }
}

fn is_inbox_prefix(prefix: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '*' | '>' | '.');
    prefix.len() <= 255 && prefix.split('.').all(|word| !word.is_empty() && word.chars().all(plain))
}

/// Whether this is a subject without wildcards, of at most `words` words.
fn is_subject(text: &str, words: usize) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '*' && c != '>';
    text.split('.').count() <= words
        && text.len() <= 255
        && text.split('.').all(|word| !word.is_empty() && word.chars().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: NatsConfig, url_has_login: bool) -> String {
        config.validate(url_has_login).unwrap_err().to_string()
    }

    #[test]
    fn one_way_to_log_in_is_fine() {
        let path = || Some(PathBuf::from("/run/secret"));
        let secret = || Some(Secret::new("hunter2"));
        let user = || Some("app".to_owned());
        for config in [
            NatsConfig::default(),
            NatsConfig { creds: path(), ..Default::default() },
            NatsConfig { nkey: path(), ..Default::default() },
            NatsConfig { token: secret(), ..Default::default() },
            NatsConfig { token_file: path(), ..Default::default() },
            NatsConfig { user: user(), password: secret(), ..Default::default() },
            NatsConfig { user: user(), password_file: path(), ..Default::default() },
            NatsConfig { cert: path(), key: path(), creds: path(), ..Default::default() },
        ] {
            config.validate(false).unwrap();
        }
        NatsConfig::default().validate(true).unwrap();
    }

    #[test]
    fn two_ways_to_log_in_are_refused_by_name() {
        let path = || Some(PathBuf::from("/run/secret"));
        let secret = || Some(Secret::new("hunter2"));
        let two = NatsConfig { creds: path(), token: secret(), ..Default::default() };
        let said = refused(two, false);
        assert!(said.contains("nats.token = \"***\"") && said.contains("nats.creds"), "{said}");
        let said = refused(NatsConfig { nkey: path(), ..Default::default() }, true);
        assert!(said.contains("nats.nkey") && said.contains("nats_url"), "{said}");
        let two = NatsConfig {
            user: Some("app".into()),
            password: secret(),
            password_file: path(),
            ..Default::default()
        };
        assert!(refused(two, false).contains("nats.password is set too"));
        let two = NatsConfig {
            user: Some("app".into()),
            password: secret(),
            token_file: path(),
            ..Default::default()
        };
        assert!(refused(two, false).contains("nats.token_file is another way"));
    }

    #[test]
    fn a_domain_or_a_prefix_that_cannot_be_one_is_refused() {
        let text = |text: &str| Some(text.to_owned());
        for (domain, prefix) in
            [(text("hub"), None), (None, text("JS.hub.API")), (None, text("$JS.hub.API"))]
        {
            let config =
                NatsConfig { jetstream_domain: domain, api_prefix: prefix, ..Default::default() };
            config.validate(false).unwrap();
        }
        for domain in ["", "a.b", "a b", "*", ">", "a\n"] {
            let config = NatsConfig { jetstream_domain: text(domain), ..Default::default() };
            assert!(refused(config, false).contains("nats.jetstream_domain"), "{domain:?}");
        }
        for prefix in ["", ".", "a.", "a..b", "a b", "a.*", "a.>"] {
            let config = NatsConfig { api_prefix: text(prefix), ..Default::default() };
            assert!(refused(config, false).contains("nats.api_prefix"), "{prefix:?}");
        }
        let both = NatsConfig {
            jetstream_domain: text("hub"),
            api_prefix: text("a"),
            ..Default::default()
        };
        assert!(refused(both, false).contains("keep one of the two"));
    }

    #[test]
    fn half_a_setting_is_refused() {
        let path = || Some(PathBuf::from("/run/secret"));
        let of = |config| refused(config, false);
        let none = NatsConfig::default;
        assert!(of(NatsConfig { cert: path(), ..none() }).contains("it needs nats.key"));
        assert!(of(NatsConfig { key: path(), ..none() }).contains("it needs nats.cert"));
        assert!(of(NatsConfig { user: Some("u".into()), ..none() }).contains("nats.password"));
        let said = of(NatsConfig { password: Some(Secret::new("hunter2")), ..none() });
        assert!(said.contains("it needs nats.user") && !said.contains("hunter2"), "{said}");
        let said = of(NatsConfig { token: Some(Secret::new("")), ..none() });
        assert!(said.contains("nats.token") && said.contains("empty"), "{said}");
    }

    #[test]
    fn an_inbox_prefix_is_a_subject_without_wildcards() {
        let of = |prefix: &str| NatsConfig {
            inbox_prefix: Some(prefix.into()),
            ..NatsConfig::default()
        };
        for fine in ["_INBOX", "_INBOX_relay", "answers.relay.1"] {
            of(fine).validate(false).unwrap();
        }
        for wrong in ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "a\n", "ä"] {
            assert!(refused(of(wrong), false).contains("nats.inbox_prefix"), "{wrong:?}");
        }
    }
}
