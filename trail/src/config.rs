//! The trail's settings.

use std::time::Duration;

use pillarbox_relay::{ConfigError, NatsConfig};
use pillarbox_store::Schema;

/// The trail's settings.
#[derive(Clone, Debug)]
pub struct TrailConfig {
    /// The database that holds the trail. Default: `postgres://localhost/postgres`.
    pub database_url: String,
    /// The schema of its tables. Default: `pillarbox`.
    pub schema: String,
    /// The broker. Default: `nats://127.0.0.1:4222`.
    pub nats_url: String,
    /// TLS and login for the broker.
    pub nats: NatsConfig,
    /// The streams to read. Empty: every stream that the broker shows, except those of key-value buckets and object
    /// stores, and work queues, whose messages cannot be read along. Default: empty.
    pub streams: Vec<String>,
    /// How long rows are kept, between an hour and ten years. A day is dropped as a whole when all of it is older.
    /// Default: 3 days.
    pub retention: Duration,
    /// The most bytes that the rows may take with their indexes, at least 1 MiB. Beyond that, the oldest days are
    /// dropped, even today's. It is looked at once a minute. Default: 4 GiB.
    pub max_bytes: u64,
}

impl Default for TrailConfig {
    fn default() -> Self {
        Self {
            database_url: "postgres://localhost/postgres".into(),
            schema: pillarbox_store::schema::DEFAULT.into(),
            nats_url: "nats://127.0.0.1:4222".into(),
            nats: NatsConfig::default(),
            streams: Vec::new(),
            retention: Duration::from_secs(3 * 86_400),
            max_bytes: 4 * 1024 * 1024 * 1024,
        }
    }
}

impl TrailConfig {
    /// Refuses settings that cannot work.
    ///
    /// # Errors
    /// [`ConfigError`], with the first setting that cannot be used.
    pub fn validate(&self) -> Result<Schema, ConfigError> {
        let fail = |key, value: String, problem: &str| {
            Err(ConfigError { key, value, problem: problem.to_owned() })
        };
        let years = Duration::from_secs(10 * 365 * 86_400);
        if self.retention < Duration::from_secs(3_600) || self.retention > years {
            let value = self.retention.as_secs().to_string();
            return fail("retention_s", value, "it must be between an hour and ten years");
        }
        if self.max_bytes < 1024 * 1024 || i64::try_from(self.max_bytes).is_err() {
            return fail("max_bytes", self.max_bytes.to_string(), "it must be at least 1048576");
        }
        if let Some(wrong) = self.streams.iter().find(|name| !is_stream_name(name)) {
            let shown = wrong.chars().take(80).collect();
            return fail(
                "streams",
                shown,
                "a stream's name has 1 to 255 bytes and no spaces, dots, wildcards or slashes",
            );
        }
        Schema::parse(&self.schema).map_err(|error| ConfigError {
            key: "schema",
            value: error.name,
            problem: error.problem.to_owned(),
        })
    }
}

fn is_stream_name(name: &str) -> bool {
    let refused =
        |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\');
    !name.is_empty() && name.len() <= 255 && !name.contains(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        TrailConfig::default().validate().unwrap();
        let refused = |config: TrailConfig| config.validate().unwrap_err().key;
        for seconds in [0, 3_599, 400_000_000] {
            let retention = Duration::from_secs(seconds);
            assert_eq!(refused(TrailConfig { retention, ..Default::default() }), "retention_s");
        }
        for max_bytes in [0, 1_048_575, u64::MAX] {
            assert_eq!(refused(TrailConfig { max_bytes, ..Default::default() }), "max_bytes");
        }
        for name in ["", "A.B", "A B", ">", "a/b"] {
            let streams = vec!["FINE".to_owned(), name.to_owned()];
            assert_eq!(refused(TrailConfig { streams, ..Default::default() }), "streams");
        }
        assert_eq!(refused(TrailConfig { schema: "A".into(), ..Default::default() }), "schema");
    }
}
