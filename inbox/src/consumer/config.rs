//! What a consumer is told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ConsumerError;

/// A consumer's settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsumerConfig {
    /// The stream to read.
    pub stream: String,
    /// The consumer's name: of the durable consumer on the server, and of what it has handled in the inbox.
    pub name: String,
    /// The subjects to read, which may hold wildcards; empty: all of the stream's.
    pub filter_subjects: Vec<String>,
    /// Whether events of one key are handled in their order.
    pub order: Order,
    /// How many handlers run at a time; each needs a connection of the pool.
    pub concurrency: usize,
    /// How many events are held at the most, running and waiting.
    pub prefetch: usize,
    /// How many failed attempts make a dead letter.
    pub max_attempts: u32,
    /// The wait after the first failed attempt, in milliseconds; it doubles with each, plus up to as much
    /// again at random.
    pub backoff_ms: u64,
    /// The longest wait between attempts, in milliseconds, before the random part.
    pub max_backoff_ms: u64,
    /// How long a handler may take, in milliseconds; then it is dropped, and rolled back, and the attempt has
    /// failed. The database ends a transaction that is idle for two seconds more than this, so that a process
    /// that hangs does not hold up its events for longer.
    pub handler_timeout_ms: u64,
    /// How long the server waits for a sign of life before it delivers again, in milliseconds. Slow handlers
    /// give one every third of it.
    pub ack_wait_ms: u64,
    /// How long a silent process keeps its place as the active one, in milliseconds, before another takes
    /// over. Only for [`Order::Key`].
    pub takeover_ms: u64,
    /// How long a stop waits for running handlers, in milliseconds.
    pub shutdown_timeout_ms: u64,
    /// The schema of the inbox tables.
    pub schema: String,
}

/// Whether events of one key are handled in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Order {
    /// In order per key, parallel across keys. Of several processes one is active, the others stand by.
    #[default]
    Key,
    /// In any order. Several processes share the work.
    None,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            stream: String::new(),
            name: String::new(),
            filter_subjects: Vec::new(),
            order: Order::Key,
            concurrency: 8,
            prefetch: 256,
            max_attempts: 5,
            backoff_ms: 100,
            max_backoff_ms: 30_000,
            handler_timeout_ms: 30_000,
            ack_wait_ms: 30_000,
            takeover_ms: 6_000,
            shutdown_timeout_ms: 10_000,
            schema: "pillarbox".into(),
        }
    }
}

impl ConsumerConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`ConsumerError::Config`] with the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), ConsumerError> {
        let fail =
            |key, problem: &str| Err(ConsumerError::Config { key, problem: problem.to_owned() });
        for (key, name) in [("stream", &self.stream), ("name", &self.name)] {
            let plain = !name.is_empty()
                && name.len() <= 255
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            if !plain {
                return fail(key, "it is letters, digits, _ and -, 1 to 255 of them");
            }
        }
        if self.filter_subjects.iter().any(String::is_empty) {
            return fail("filter_subjects", "a subject is empty");
        }
        if !(1..=10_000).contains(&self.concurrency) {
            return fail("concurrency", "it is 1 to 10000");
        }
        if !(self.concurrency..=100_000).contains(&self.prefetch) {
            return fail("prefetch", "it is at least the concurrency, and at most 100000");
        }
        if self.max_attempts == 0 {
            return fail("max_attempts", "it is at least 1");
        }
        if self.backoff_ms == 0 || self.max_backoff_ms < self.backoff_ms {
            return fail("backoff_ms", "it is at least 1, and max_backoff_ms is no less");
        }
        if self.handler_timeout_ms == 0 {
            return fail("handler_timeout_ms", "it is at least 1");
        }
        if self.ack_wait_ms < 300 {
            return fail("ack_wait_ms", "it is at least 300");
        }
        if self.takeover_ms < 1_000 {
            return fail("takeover_ms", "it is at least 1000");
        }
        Ok(())
    }

    pub(super) fn ack_wait(&self) -> Duration {
        Duration::from_millis(self.ack_wait_ms)
    }

    pub(super) fn takeover(&self) -> Duration {
        Duration::from_millis(self.takeover_ms)
    }

    pub(super) fn handler_timeout(&self) -> Duration {
        Duration::from_millis(self.handler_timeout_ms)
    }

    pub(super) fn shutdown_timeout(&self) -> Duration {
        Duration::from_millis(self.shutdown_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_cannot_be_used_is_named() {
        let good = || ConsumerConfig {
            stream: "ORDERS".into(),
            name: "payments".into(),
            ..Default::default()
        };
        good().validate().unwrap();
        let refused = |config: ConsumerConfig| match config.validate() {
            Err(ConsumerError::Config { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(ConsumerConfig::default()), "stream");
        assert_eq!(refused(ConsumerConfig { name: "a.b".into(), ..good() }), "name");
        assert_eq!(refused(ConsumerConfig { concurrency: 0, ..good() }), "concurrency");
        assert_eq!(refused(ConsumerConfig { prefetch: 1, ..good() }), "prefetch");
        assert_eq!(refused(ConsumerConfig { max_attempts: 0, ..good() }), "max_attempts");
        assert_eq!(refused(ConsumerConfig { max_backoff_ms: 1, ..good() }), "backoff_ms");
    }
}
