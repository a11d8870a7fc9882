//! A relay's settings.

mod database;
mod nats;
mod nearest;
mod secret;

use std::fmt;
use std::time::Duration;

use async_nats::ServerAddr;
use pillarbox_event::partition;
use pillarbox_store::{Schema, duration};
use serde::{Deserialize, Serialize};

pub(crate) use self::database::servers;
pub use self::nats::NatsConfig;
pub use self::nearest::nearest;
pub use self::secret::{MASK, Secret, masked, without_secrets};

/// A relay's settings: where it reads, where it ships to, and how long it waits.
///
/// With serde, a duration is a whole number whose unit is in its name, as in `pillarbox.toml`: `lease_ms`, or
/// `retention_s`. A part of that unit is left out when it is written. `Debug` does not show the secrets in the URLs.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayConfig {
    /// The database that holds the outbox, `postgres://user:password@host:port/database`. Default:
    /// `postgres://localhost/postgres`.
    pub database_url: String,
    /// The broker, `nats://host:port`. Several URLs separated by commas are the servers of one cluster. Default:
    /// `nats://127.0.0.1:4222`.
    pub nats_url: String,
    /// TLS and login for the broker.
    pub nats: NatsConfig,
    /// The schema of the outbox tables. Default: `pillarbox`.
    pub schema: String,
    /// The relay's name, which names its row in `pillarbox.relay`. Relays with the same name share a cursor: one ships,
    /// the others stand by. 1 to 255 bytes. Default: `default`.
    pub name: String,
    /// The `ce-source` of events that have none. Default: `/pillarbox`.
    pub source: String,
    /// How many partitions the keys are divided into. The subject carries the partition's number, so that as many
    /// processes of a consumer can share a stream and keep the order per key: see [`pillarbox_event::partition`]. 0 or
    /// 1: no partitions, and subjects are the topics. At most 1024. To change it, follow `docs/guides/ordering.md`.
    /// Default: 1.
    pub partitions: u32,
    /// The most rows to read at a time, between 1 and 100000. Fewer are read if rows are large: a page aims at 4 MiB.
    /// Default: 500.
    pub page_rows: u32,
    /// The longest pause between two polls of an idle outbox, between 2 ms and a minute. The pause starts at 1 ms and
    /// doubles. Default: 50 ms.
    #[serde(rename = "idle_interval_ms", with = "duration::milliseconds")]
    pub idle_interval: Duration,
    /// How long the lease lasts unless it is renewed, between 300 ms and 10 minutes. The leader renews it every third
    /// of that. A standby takes over when it has expired. Default: 10 s.
    #[serde(rename = "lease_ms", with = "duration::milliseconds")]
    pub lease: Duration,
    /// How long the broker may take to acknowledge, between 100 ms and a minute. After that, the relay sends everything
    /// unacknowledged again. Default: 5 s.
    #[serde(rename = "ack_timeout_ms", with = "duration::milliseconds")]
    pub ack_timeout: Duration,
    /// How long a stop may wait for acknowledgements, at most 10 minutes. Default: 10 s.
    #[serde(rename = "shutdown_timeout_ms", with = "duration::milliseconds")]
    pub shutdown_timeout: Duration,
    /// How long shipped rows are kept before they are removed, between a second and 10 years. If the broker loses
    /// events, the relay can go back this far. A row is removed only when every relay in `pillarbox.relay` shipped it
    /// at least this long ago. Default: an hour.
    #[serde(rename = "retention_s", with = "duration::seconds")]
    pub retention: Duration,
    /// How messages are stored. Default: [`SinkChoice::Auto`].
    pub sink: SinkChoice,
    /// What happens to a key's later events when one is set aside. Default: [`ShippingOrder::Key`].
    pub order: ShippingOrder,
    /// What happens to an event whose subject no stream takes. Default: [`NoStream::Hold`].
    pub no_stream: NoStream,
    /// Whether to end with an error if the database or the broker cannot be reached at the start, instead of trying
    /// again until they can. Default: false.
    pub fail_fast: bool,
}

/// How messages are stored: through fast ingest, or with at most one unacknowledged message for each key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SinkChoice {
    /// Fast ingest where the server and the stream support it, the keyed window elsewhere.
    #[default]
    Auto,
    /// The keyed window everywhere.
    KeyedWindow,
}

/// What happens to the later events of a key when one is set aside as a dead letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ShippingOrder {
    /// They are shipped without the event.
    #[default]
    Key,
    /// They are parked behind the dead letter, and shipped in order when it is retried or discarded.
    Strict,
}

/// What happens to an event whose subject no stream takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NoStream {
    /// The relay waits until a stream takes the subject. The log names the subject.
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
            idle_interval: Duration::from_millis(50),
            lease: Duration::from_secs(10),
            ack_timeout: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(10),
            retention: Duration::from_secs(3_600),
            sink: SinkChoice::Auto,
            order: ShippingOrder::Key,
            no_stream: NoStream::Hold,
            fail_fast: false,
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {value:?} cannot be used: {problem}")]
pub struct ConfigError {
    /// The setting's name in `pillarbox.toml`, such as `lease_ms`.
    pub key: &'static str,
    /// Its value, in the unit that the name says.
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
                    "it must be nats://host:port, or tls://host:port for TLS, or several of these separated by commas; \
                     special characters in a password must be percent-encoded",
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
            return fail("source", &error, "it must be a valid header value");
        }
        if self.source.is_empty() {
            return fail(
                "source",
                &self.source,
                "it must not be empty, because a CloudEvent must have a source",
            );
        }
        if self.partitions > partition::MOST {
            return fail("partitions", &self.partitions, "it must be at most 1024");
        }
        if !(1..=100_000).contains(&self.page_rows) {
            return fail("page_rows", &self.page_rows, "it must be between 1 and 100000");
        }
        self.check_durations()
    }

    fn check_durations(&self) -> Result<(), ConfigError> {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        let ten_years = s(10 * 365 * 86_400);
        for (key, found, shortest, longest, problem) in [
            (
                "idle_interval_ms",
                self.idle_interval,
                ms(2),
                ms(60_000),
                "it must be between 2 and 60000",
            ),
            ("lease_ms", self.lease, ms(300), ms(600_000), "it must be between 300 and 600000"),
            (
                "ack_timeout_ms",
                self.ack_timeout,
                ms(100),
                ms(60_000),
                "it must be between 100 and 60000",
            ),
            (
                "retention_s",
                self.retention,
                s(1),
                ten_years,
                "it must be between 1 second and 10 years (315360000)",
            ),
            (
                "shutdown_timeout_ms",
                self.shutdown_timeout,
                ms(0),
                ms(600_000),
                "it must be at most 600000",
            ),
        ] {
            if !(shortest..=longest).contains(&found) {
                let unit = if key.ends_with("_ms") { 1 } else { 1_000 };
                let value = (found.as_millis() / unit).to_string();
                return Err(ConfigError { key, value, problem: problem.to_owned() });
            }
        }
        Ok(())
    }

    /// How often to record a checkpoint to go back to. About two thousand are kept at most within the retention.
    pub(crate) fn checkpoint_interval(&self) -> Duration {
        let retention = self.retention;
        (retention / 2000).clamp(Duration::from_secs(5), Duration::from_secs(60)).min(retention / 4)
    }
}

/// Whether this names a server that the client can connect to, without a path or parameters.
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
            idle_interval,
            lease,
            ack_timeout,
            shutdown_timeout,
            retention,
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
            .field("idle_interval", idle_interval)
            .field("lease", lease)
            .field("ack_timeout", ack_timeout)
            .field("shutdown_timeout", shutdown_timeout)
            .field("retention", retention)
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
        let lease = Duration::from_micros(299_999);
        assert_eq!(refused(RelayConfig { lease, ..base() }), "lease_ms");
        assert_eq!(refused(RelayConfig { retention: Duration::MAX, ..base() }), "retention_s");
        let wait = RelayConfig { shutdown_timeout: Duration::from_secs(601), ..base() };
        let said = wait.validate().unwrap_err().to_string();
        assert_eq!(
            said,
            "shutdown_timeout_ms = \"601000\" cannot be used: it must be at most 600000"
        );
    }
}
