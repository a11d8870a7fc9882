//! Every key: its kind, its variable, its flag. Files, environment, flags, `config --print` and the documentation all
//! follow this table.

use std::fmt;

/// A key of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Key {
    /// Its name in `pillarbox.toml`; `nats.ca` is `ca` in the table `[nats]`.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// Its environment variable.
    pub env: &'static str,
    /// Its flag, without dashes. A secret has none, because other users of a machine can see a process's arguments.
    pub flag: Option<&'static str>,
    /// Whether each outbox may have its own, or the process has one.
    pub scope: Scope,
    /// Its meaning, for help texts.
    pub help: &'static str,
}

/// What values a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Text.
    Text,
    /// Text that is never shown.
    Secret,
    /// A URL. Its secrets are never shown.
    Url,
    /// A file. In `pillarbox.toml`, a path is relative to the folder of that file.
    File,
    /// A whole number, not negative.
    Number,
    /// True or false.
    Switch,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// What a key applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// Each outbox may have its own.
    Outbox,
    /// One for the whole process; not allowed in `[[outbox]]`.
    Process,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text | Self::Secret | Self::Url | Self::File => f.write_str("text in quotes"),
            Self::Number => f.write_str("a whole number of at least 0"),
            Self::Switch => f.write_str("true or false"),
            Self::Word(words) => {
                f.write_str("one of ")?;
                for (at, word) in words.iter().enumerate() {
                    write!(f, "{}\"{word}\"", if at == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

const fn outbox(
    name: &'static str,
    kind: Kind,
    env: &'static str,
    flag: &'static str,
    help: &'static str,
) -> Key {
    Key { name, kind, env, flag: Some(flag), scope: Scope::Outbox, help }
}

const fn process(
    name: &'static str,
    kind: Kind,
    env: &'static str,
    flag: &'static str,
    help: &'static str,
) -> Key {
    Key { name, kind, env, flag: Some(flag), scope: Scope::Process, help }
}

const fn secret(name: &'static str, env: &'static str, help: &'static str) -> Key {
    Key { name, kind: Kind::Secret, env, flag: None, scope: Scope::Process, help }
}

use Kind::{File, Number, Switch, Text, Url, Word};

/// Every key, in the order in which they are printed.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    outbox("database_url", Url, "DATABASE_URL", "database-url", "The database, postgres://user:password@host:port/database"),
    outbox("schema", Text, "PILLARBOX_SCHEMA", "schema", "The schema of the tables"),
    outbox("name", Text, "PILLARBOX_RELAY", "name", "The relay's name. Relays with the same name share a cursor: one ships, the others stand by"),
    outbox("source", Text, "PILLARBOX_SOURCE", "source", "The `ce-source` of events that have none"),
    outbox("order", Word(&["key", "strict"]), "PILLARBOX_ORDER", "order", "What happens to a key's later events when one is set aside as a dead letter: they are shipped (key), or wait until it is resolved (strict)"),
    outbox("no_stream", Word(&["hold", "dead-letter"]), "PILLARBOX_NO_STREAM", "no-stream", "What happens to an event whose subject no stream takes: the relay waits for a stream (hold), or sets the event aside (dead-letter)"),
    outbox("sink", Word(&["auto", "keyed-window"]), "PILLARBOX_SINK", "sink", "How messages are stored: through fast ingest where server and stream support it (auto), or never through it (keyed-window)"),
    outbox("partitions", Number, "PILLARBOX_PARTITIONS", "partitions", "How many partitions the keys are divided into, for consumers with several processes. The subject carries the partition's number. At most 1024; 0 or 1 means no partitions"),
    outbox("page_rows", Number, "PILLARBOX_PAGE_ROWS", "page-rows", "The most rows to read at a time, between 1 and 100000"),
    outbox("idle_interval_ms", Number, "PILLARBOX_IDLE_INTERVAL_MS", "idle-interval-ms", "The longest pause between two polls of an idle outbox, in milliseconds, between 2 and 60000"),
    outbox("lease_ms", Number, "PILLARBOX_LEASE_MS", "lease-ms", "How long the lease lasts unless it is renewed, in milliseconds, between 300 and 600000"),
    outbox("ack_timeout_ms", Number, "PILLARBOX_ACK_TIMEOUT_MS", "ack-timeout-ms", "How long the broker may take to acknowledge, in milliseconds, between 100 and 60000"),
    outbox("shutdown_timeout_ms", Number, "PILLARBOX_SHUTDOWN_TIMEOUT_MS", "shutdown-timeout-ms", "How long a stop may wait for acknowledgements, in milliseconds, at most 600000"),
    outbox("retention_s", Number, "PILLARBOX_RETENTION_S", "retention-s", "How long shipped rows are kept, in seconds, at most 10 years"),
    process("fail_fast", Switch, "PILLARBOX_FAIL_FAST", "fail-fast", "Exit with code 1 if the database or the broker cannot be reached at the start, instead of trying again"),
    process("http", Text, "PILLARBOX_HTTP", "http", "Where /healthz, /readyz and /metrics are served: an address and a port, or `off`. Port 0 means any free port"),
    process("nats_url", Url, "NATS_URL", "nats-url", "The broker, nats://host:port or tls://host:port; several URLs separated by commas are the servers of one cluster"),
    process("nats.require_tls", Switch, "NATS_REQUIRE_TLS", "nats-require-tls", "Refuse connections to the broker without TLS"),
    process("nats.tls_first", Switch, "NATS_TLS_FIRST", "nats-tls-first", "Start with the TLS handshake, for servers with `handshake_first`"),
    process("nats.ca", File, "NATS_CA", "nats-ca", "A PEM file with the certificate authorities to trust for the broker's certificate"),
    process("nats.cert", File, "NATS_CERT", "nats-cert", "A PEM file with the client's certificate"),
    process("nats.key", File, "NATS_KEY", "nats-key", "A PEM file with the private key of the client's certificate"),
    process("nats.creds", File, "NATS_CREDS", "nats-creds", "A credentials file: a user's JWT and the seed of its nkey"),
    process("nats.nkey", File, "NATS_NKEY", "nats-nkey", "A file with the seed of a user's nkey"),
    secret("nats.token", "NATS_TOKEN", "A token"),
    process("nats.token_file", File, "NATS_TOKEN_FILE", "nats-token-file", "A file with a token"),
    process("nats.user", Text, "NATS_USER", "nats-user", "The broker's user; it needs a password"),
    secret("nats.password", "NATS_PASSWORD", "The user's password"),
    process("nats.password_file", File, "NATS_PASSWORD_FILE", "nats-password-file", "A file with the user's password"),
    process("nats.jetstream_domain", Text, "NATS_JETSTREAM_DOMAIN", "nats-jetstream-domain", "The JetStream domain of the streams, if it differs from the server's, such as a hub's domain seen from a leaf node"),
    process("nats.api_prefix", Text, "NATS_API_PREFIX", "nats-api-prefix", "The prefix of the JetStream API, $JS.API by default, for an API that another account exports"),
    process("nats.inbox_prefix", Text, "NATS_INBOX_PREFIX", "nats-inbox-prefix", "The prefix of the subjects on which the broker answers, such as _INBOX_relay; no other user should be allowed to subscribe to it"),
];

/// The key with this name.
pub fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

#[cfg(test)]
mod tests {
    use pillarbox_relay::config::nearest;

    use super::*;

    #[test]
    fn the_nearest_name_is_found_or_none() {
        let names = || KEYS.iter().map(|key| key.name);
        assert_eq!(nearest("retension_s", names()), Some("retention_s"));
        assert_eq!(nearest("databse_url", names()), Some("database_url"));
        assert_eq!(nearest("order_by", names()), None);
        assert_eq!(nearest("zzz", names()), None);
    }

    #[test]
    fn names_variables_and_flags_are_unique() {
        for (at, key) in KEYS.iter().enumerate() {
            for other in &KEYS[at + 1..] {
                assert!(key.name != other.name && key.env != other.env, "{key:?} {other:?}");
                assert!(key.flag.is_none() || key.flag != other.flag, "{key:?} {other:?}");
            }
        }
    }
}
