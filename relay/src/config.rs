//! What a relay is told.

mod database;
mod nats;
mod nearest;
mod secret;

use std::fmt;
use std::time::Duration;

use async_nats::ServerAddr;
use pillarbox_event::partition;
use pillarbox_store::Schema;
use serde::{Deserialize, Serialize};

pub(crate) use self::database::servers;
pub use self::nats::NatsConfig;
pub use self::nearest::nearest;
pub use self::secret::{MASK, Secret, masked, without_secrets};

/// A relay's settings: where it reads, where it ships to, and how patient it is.
///
/// Secrets in the URLs do not show in `Debug`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayConfig {
    /// The database that holds the outbox, `postgres://user:password@host:port/database`.
    pub database_url: String,
    /// The broker, `nats://host:port`; several parted by commas are one cluster.
    pub nats_url: String,
    /// TLS and login for the broker.
    pub nats: NatsConfig,
    /// The schema of the outbox tables.
    pub schema: String,
    /// The relay's name: its row in `pillarbox.relay`. Relays of one name share a cursor and take turns.
    pub name: String,
    /// The `ce-source` of events that name none.
    pub source: String,
    /// Into how many partitions the keys are put, each with its number in the subject, so that as many processes
    /// of a consumer can share a stream and keep the order per key: see [`pillarbox_event::partition`]. 1, or 0:
    /// subjects are the topics. A change takes the steps in `docs/guides/ordering.md`.
    pub partitions: u32,
    /// The most rows read at a time. Fewer are read where rows are large: a page aims at 4 MiB.
    pub page_rows: u32,
    /// The longest pause between two looks at an idle outbox, in milliseconds. It starts at 1 ms and doubles.
    pub idle_interval_ms: u64,
    /// How long the lease lasts unless it is renewed, in milliseconds; it is renewed every third of that. A
    /// standby takes over when it has expired.
    pub lease_ms: u64,
    /// How long an acknowledgement of the broker may take, in milliseconds, before everything
    /// unacknowledged is sent again.
    pub ack_timeout_ms: u64,
    /// How long a stop may wait for acknowledgements, in milliseconds.
    pub shutdown_timeout_ms: u64,
    /// How long shipped rows are kept, in seconds, before they are removed: the relay can go back as far when
    /// the broker has lost them. No row goes that any relay in `pillarbox.relay` has not shipped so long ago.
    pub retention_s: u64,
    /// How messages are stored.
    pub sink: SinkChoice,
    /// What becomes of a key whose event is set aside.
    pub order: Order,
    /// What becomes of an event whose subject no stream takes.
    pub no_stream: NoStream,
    /// End with an error if the database or the broker cannot be reached at the start, instead of trying
    /// again until they can.
    pub fail_fast: bool,
}

/// How messages are stored: through fast ingest, or with at most one unacknowledged message for each key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SinkChoice {
    /// Fast ingest where the server and the stream can, the keyed window elsewhere.
    #[default]
    Auto,
    /// The keyed window everywhere.
    KeyedWindow,
}

/// What becomes of the later events of a key when one is set aside as a dead letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Order {
    /// They are shipped: the key goes on without the event.
    #[default]
    Key,
    /// They are parked behind it, and shipped in order when it is retried or discarded.
    Strict,
}

/// What becomes of an event whose subject no stream takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NoStream {
    /// The relay holds, naming the subject, until there is a stream.
    #[default]
    Hold,
    /// The event is set aside as a dead letter with the reason `no_stream`.
    DeadLetter,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            database_url: "postgres://localhost/postgres".into(),
            nats_url: "nats://127.0.0.1:4222".into(),
            nats: NatsConfig::default(),
            schema: "pillarbox".into(),
            name: "default".into(),
            source: "/pillarbox".into(),
            partitions: 1,
            page_rows: 500,
            idle_interval_ms: 50,
            lease_ms: 10_000,
            ack_timeout_ms: 5_000,
            shutdown_timeout_ms: 10_000,
            retention_s: 3_600,
            sink: SinkChoice::Auto,
            order: Order::Key,
            no_stream: NoStream::Hold,
            fail_fast: false,
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {value:?} cannot be used: {problem}")]
pub struct ConfigError {
    /// The setting's name.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
}

impl RelayConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`ConfigError`] with the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fail = |key, value: &dyn fmt::Display, problem: &str| {
            Err(ConfigError { key, value: value.to_string(), problem: problem.to_owned() })
        };
        database::validate(&self.database_url)?;
        let mut url_has_login = false;
        for server in self.nats_url.split(',') {
            let parsed = server.trim().parse::<ServerAddr>().ok();
            let Some(server) = parsed.filter(is_server) else {
                let shown = without_secrets(&self.nats_url);
                return fail(
                    "nats_url",
                    &shown,
                    "it must be nats://host:port, or tls:// for TLS, several parted by commas; other characters in a \
                     password must be percent-encoded",
                );
            };
            url_has_login |= server.has_user_pass();
        }
        self.nats.validate(url_has_login)?;
        if let Err(error) = Schema::parse(&self.schema) {
            return fail("schema", &self.schema, error.problem);
        }
        if self.name.is_empty() || self.name.len() > 255 || self.name.chars().any(char::is_control)
        {
            return fail(
                "name",
                &self.name,
                "a relay's name must have 1 to 255 bytes and no control characters",
            );
        }
        if let Err(error) = pillarbox_event::header::validate_value("ce-source", &self.source) {
            return fail("source", &error, "it must be fit to be sent as a header");
        }
        if self.source.is_empty() {
            return fail("source", &self.source, "CloudEvents must name a source");
        }
        if self.partitions > partition::MOST {
            return fail("partitions", &self.partitions, "it must be at most 1024");
        }
        if !(1..=100_000).contains(&self.page_rows) {
            return fail("page_rows", &self.page_rows, "it must be between 1 and 100000");
        }
        if !(2..=60_000).contains(&self.idle_interval_ms) {
            return fail(
                "idle_interval_ms",
                &self.idle_interval_ms,
                "it must be between 2 and 60000",
            );
        }
        if !(300..=600_000).contains(&self.lease_ms) {
            return fail("lease_ms", &self.lease_ms, "it must be between 300 and 600000");
        }
        if !(100..=60_000).contains(&self.ack_timeout_ms) {
            return fail(
                "ack_timeout_ms",
                &self.ack_timeout_ms,
                "it must be between 100 and 60000",
            );
        }
        if !(1..=10 * 365 * 86_400).contains(&self.retention_s) {
            return fail(
                "retention_s",
                &self.retention_s,
                "it must be between 1 second and 10 years",
            );
        }
        if self.shutdown_timeout_ms > 600_000 {
            return fail(
                "shutdown_timeout_ms",
                &self.shutdown_timeout_ms,
                "it must be at most 600000",
            );
        }
        Ok(())
    }

    pub(crate) fn idle_interval(&self) -> Duration {
        Duration::from_millis(self.idle_interval_ms)
    }

    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// How often a place to go back to is remembered. At most about two thousand are kept for the retention.
    pub(crate) fn checkpoint_interval(&self) -> Duration {
        let retention = Duration::from_secs(self.retention_s);
        (retention / 2000).clamp(Duration::from_secs(5), Duration::from_secs(60)).min(retention / 4)
    }

    pub(crate) fn ack_timeout(&self) -> Duration {
        Duration::from_millis(self.ack_timeout_ms)
    }

    pub(crate) fn shutdown_timeout(&self) -> Duration {
        Duration::from_millis(self.shutdown_timeout_ms)
    }
}

/// Whether this is a server that the client can speak to, and nothing more than a server.
fn is_server(server: &ServerAddr) -> bool {
    let url = server.clone().into_inner();
    ["nats", "tls"].contains(&server.scheme())
        && !server.host().is_empty()
        && server.port() != 0
        && ["", "/"].contains(&url.path())
        && url.query().is_none()
        && url.fragment().is_none()
}

impl fmt::Debug for RelayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            database_url,
            nats_url,
            nats,
            schema,
            name,
            source,
            partitions,
            page_rows,
            idle_interval_ms,
            lease_ms,
            ack_timeout_ms,
            shutdown_timeout_ms,
            retention_s,
            sink,
            order,
            no_stream,
            fail_fast,
        } = self;
        f.debug_struct("RelayConfig")
            .field("database_url", &without_secrets(database_url))
            .field("nats_url", &without_secrets(nats_url))
            .field("nats", nats)
            .field("schema", schema)
            .field("name", name)
            .field("source", source)
            .field("partitions", partitions)
            .field("page_rows", page_rows)
            .field("idle_interval_ms", idle_interval_ms)
            .field("lease_ms", lease_ms)
            .field("ack_timeout_ms", ack_timeout_ms)
            .field("shutdown_timeout_ms", shutdown_timeout_ms)
            .field("retention_s", retention_s)
            .field("sink", sink)
            .field("order", order)
            .field("no_stream", no_stream)
            .field("fail_fast", fail_fast)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let config = RelayConfig {
            database_url: "postgres://app:hunter2@db:5432/shop?sslpassword=hunter3".into(),
            nats_url: "nats://token4@a:4222,nats://u:p5@b:4222".into(),
            ..RelayConfig::default()
        };
        let shown = format!("{config:?}");
        for secret in ["hunter2", "hunter3", "token4", "p5"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(
            shown.contains("postgres://db:5432/shop")
                && shown.contains("nats://a:4222,nats://b:4222")
        );
    }

    #[test]
    fn a_setting_that_cannot_be_used_is_named() {
        RelayConfig::default().validate().unwrap();
        let refused = |config: RelayConfig| config.validate().unwrap_err().key;
        let base = RelayConfig::default;
        assert_eq!(refused(RelayConfig { schema: "a; drop table b".into(), ..base() }), "schema");
        assert_eq!(refused(RelayConfig { schema: String::new(), ..base() }), "schema");
        assert_eq!(refused(RelayConfig { name: String::new(), ..base() }), "name");
        assert_eq!(refused(RelayConfig { source: "a\nb".into(), ..base() }), "source");
        assert_eq!(refused(RelayConfig { partitions: 1025, ..base() }), "partitions");
        assert_eq!(refused(RelayConfig { page_rows: 0, ..base() }), "page_rows");
        assert_eq!(refused(RelayConfig { lease_ms: 1, ..base() }), "lease_ms");
    }
}
