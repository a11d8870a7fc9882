//! A consumer's settings.

use std::time::Duration;

use async_nats::jetstream;
use pillarbox_event::partition;
use serde::{Deserialize, Serialize};

use super::error::ConsumerError;
use super::subjects::overlap;

/// The longest duration that a setting in milliseconds may have: a day.
const LONGEST_MS: u64 = 86_400_000;

/// A consumer's settings. The durations in milliseconds must be at most a day (86400000).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsumerConfig {
    /// The stream to read. Required.
    pub stream: String,
    /// The consumer's name. It names the durable consumer on the server, the consumer's rows in the inbox, and its
    /// metrics and status. All processes of a service must use the same name, and no two services may share one. Under
    /// another name, every event counts as not handled yet. Required.
    pub name: String,
    /// The subjects to read. They may hold wildcards, and must not overlap. Empty, the default, means all subjects of
    /// the stream.
    pub filter_subjects: Vec<String>,
    /// Whether events of one key are handled in their order.
    pub order: Order,
    /// The number of [partitions](pillarbox_event::partition) into which the relay puts the keys of these events. With
    /// more than one, all processes of the consumer share the partitions about evenly, and the order per key holds
    /// across the processes. Events in no partition are not read. The number must be the same in every process and in
    /// the relay. To change it, follow the steps in `docs/guides/ordering.md`. With 1 or 0, there are no partitions,
    /// and one process is active at a time. Partitions need the table `inbox_process`, one connection more than those
    /// of the pool, and an [`order`](Self::order) other than `None`. At most 1024.
    pub partitions: u32,
    /// How many handlers run at the same time. Each needs a connection of the pool. Between 1 and 10000.
    pub concurrency: usize,
    /// The most events that are held at the same time, running or waiting. The default is 256. With partitions, the
    /// number is divided among them. When failing keys hold more than half of these places, the consumer parks the key
    /// that holds the most in the database, with all of its waiting events, up to 10,000 events or 256 MiB: see
    /// `docs/guides/ordering.md`. Must be between `concurrency` and 100000, and with
    /// partitions at least `concurrency` × `partitions`. 256 by default.
    pub prefetch: usize,
    /// The most events that a [`BatchHandler`](pillarbox_inbox::BatchHandler) is given in one call. Used by
    /// [`run_batches`](crate::Consumer::run_batches) only.
    pub batch_size: usize,
    /// How long an event waits for others to fill its batch, in milliseconds. Used by
    /// [`run_batches`](crate::Consumer::run_batches) only.
    pub batch_linger_ms: u64,
    /// After how many failed attempts an event becomes a dead letter. At least 1.
    pub max_attempts: u32,
    /// The wait after the first failed attempt, in milliseconds. It doubles with each further failure, up to
    /// `max_backoff_ms`. A random part of up to the same length is added to each wait.
    pub backoff_ms: u64,
    /// The longest wait between attempts, in milliseconds, without the random part.
    pub max_backoff_ms: u64,
    /// How long failures of one event are not counted while a handler reports an outage, or while a second database is
    /// away, in seconds. After that, each failure counts as an attempt. The default is a day, the maximum ten years.
    pub max_outage_s: u64,
    /// How long a handler may take, in milliseconds. After that, the consumer drops the handler and rolls its
    /// transaction back, and the attempt has failed. The database ends a transaction that is idle, or a statement that
    /// runs, for two seconds longer than this. So neither a process that hangs nor a statement whose handler was
    /// dropped holds up its events for longer. (In the handler's transaction, `statement_timeout` may be lowered, but
    /// is never raised.)
    pub handler_timeout_ms: u64,
    /// How long the server waits for an acknowledgement or a sign of life before it delivers an event again, in
    /// milliseconds. While a slow handler runs, the consumer sends a sign of life every third of this time. At least
    /// 300.
    pub ack_wait_ms: u64,
    /// How long a process that gives no sign of life stays the active one, in milliseconds, before another process
    /// takes over. Not used with [`Order::None`]. At least 1000.
    pub takeover_ms: u64,
    /// How long a shutdown waits for running handlers, in milliseconds. Then it drops them.
    pub shutdown_timeout_ms: u64,
    /// How long the inbox remembers that an event was handled, in seconds. Older rows are removed. It must be at least
    /// as long as the stream keeps messages, and as long as the retries of an event can last. Otherwise an event could
    /// be handled twice, so a shorter time is refused.
    pub retention_s: u64,
    /// What to do if the durable consumer is missing, and the stream holds messages that this consumer may have handled
    /// so long ago that it has forgotten them. This can only happen with a stream without `max_age`. A consumer that
    /// has forgotten nothing, such as a new one, reads everything.
    pub after_loss: AfterLoss,
    /// The JetStream domain of the stream, if it is not the domain of the server to which the client is connected. For
    /// example, it is the hub's domain if the client is connected to a leaf node that has its own JetStream. `None`,
    /// the default, means the server's own domain.
    pub jetstream_domain: Option<String>,
    /// The prefix of the JetStream API, for an API that another account exports. `None`, the default, means `$JS.API`.
    /// It cannot be set together with `jetstream_domain`.
    pub api_prefix: Option<String>,
    /// The schema of the inbox tables. The default is `pillarbox`.
    pub schema: String,
}

/// Whether events of one key are handled in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Order {
    /// In order per key, and in parallel across keys. When an event becomes a dead letter, its key continues without
    /// it. Of several processes one is active and the others stand by. With [`partitions`](ConsumerConfig::partitions),
    /// all processes share the keys.
    #[default]
    Key,
    /// Like [`Key`](Self::Key), but a key waits behind its dead letter. The later events of the key are parked, and are
    /// handled in order once the dead letter has been retried or discarded. This costs one query per event.
    Strict,
    /// In any order. Several processes share the work.
    None,
}

/// What to do when the durable consumer is lost and the inbox has forgotten some of the handled events: see
/// [`ConsumerConfig::after_loss`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AfterLoss {
    /// Read nothing, and end with [`ConsumerError::Forgotten`].
    #[default]
    Refuse,
    /// Read only messages that are newer than everything that was forgotten. Older messages are skipped, even if they
    /// were never handled.
    Remembered,
}

impl Order {
    /// Whether the events of a key follow one another.
    pub(super) fn keeps_keys(self) -> bool {
        self != Self::None
    }
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            stream: String::new(),
            name: String::new(),
            filter_subjects: Vec::new(),
            order: Order::Key,
            partitions: 1,
            concurrency: 8,
            prefetch: 256,
            batch_size: 100,
            batch_linger_ms: 5,
            max_attempts: 5,
            backoff_ms: 100,
            max_backoff_ms: 30_000,
            max_outage_s: 86_400,
            handler_timeout_ms: 30_000,
            ack_wait_ms: 30_000,
            takeover_ms: 6_000,
            shutdown_timeout_ms: 10_000,
            retention_s: 7 * 86_400,
            after_loss: AfterLoss::Refuse,
            jetstream_domain: None,
            api_prefix: None,
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
                return fail(key, "it must be 1 to 255 letters, digits, _ or -");
            }
        }
        if self.jetstream_domain.as_ref().is_some_and(|domain| !is_subject(domain, 1)) {
            return fail(
                "jetstream_domain",
                "it must be one word without dots, spaces or wildcards",
            );
        }
        if let Some(prefix) = &self.api_prefix {
            if !is_subject(prefix, usize::MAX) {
                return fail(
                    "api_prefix",
                    "it must be words separated by dots, without spaces or wildcards",
                );
            }
            if self.jetstream_domain.is_some() {
                return fail(
                    "api_prefix",
                    "jetstream_domain is set too, and also determines the prefix; keep one of the two",
                );
            }
        }
        if self.filter_subjects.iter().any(String::is_empty) {
            return fail("filter_subjects", "a subject must not be empty");
        }
        for (at, one) in self.filter_subjects.iter().enumerate() {
            if let Some(other) =
                self.filter_subjects[at + 1..].iter().find(|other| overlap(one, other))
            {
                let problem =
                    format!("{one} and {other} overlap; each subject must match only one filter");
                return Err(ConsumerError::Config { key: "filter_subjects", problem });
            }
        }
        if self.partitions > partition::MOST {
            return fail("partitions", "it must be at most 1024");
        }
        if self.several().is_some() && self.name.len() > 240 {
            return fail(
                "name",
                "with partitions it must be at most 240 characters, because their numbers are \
            appended to it",
            );
        }
        if self.several().is_some() && !self.order.keeps_keys() {
            return fail(
                "partitions",
                "with Order::None it must be 1, because processes share the work without \
            partitions",
            );
        }
        if !(1..=10_000).contains(&self.concurrency) {
            return fail("concurrency", "it must be between 1 and 10000");
        }
        if !(self.concurrency..=100_000).contains(&self.prefetch) {
            return fail("prefetch", "it must be between concurrency and 100000");
        }
        let least = self.concurrency.saturating_mul(self.several().unwrap_or(1) as usize);
        if self.prefetch < least {
            return fail(
                "prefetch",
                &format!(
                    "it must be at least {least}, because it is divided among the partitions and each must be able to \
                     keep {} handlers busy",
                    self.concurrency
                ),
            );
        }
        if self.batch_size == 0 {
            return fail("batch_size", "it must be at least 1");
        }
        for (key, milliseconds) in [
            ("batch_linger_ms", self.batch_linger_ms),
            ("max_backoff_ms", self.max_backoff_ms),
            ("handler_timeout_ms", self.handler_timeout_ms),
            ("ack_wait_ms", self.ack_wait_ms),
            ("takeover_ms", self.takeover_ms),
            ("shutdown_timeout_ms", self.shutdown_timeout_ms),
        ] {
            if milliseconds > LONGEST_MS {
                return fail(key, "it must be at most 86400000, which is a day");
            }
        }
        if self.max_attempts == 0 {
            return fail("max_attempts", "it must be at least 1");
        }
        if self.backoff_ms == 0 || self.max_backoff_ms < self.backoff_ms {
            return fail("backoff_ms", "it must be at least 1 and at most max_backoff_ms");
        }
        if self.handler_timeout_ms == 0 {
            return fail("handler_timeout_ms", "it must be at least 1");
        }
        if self.ack_wait_ms < 300 {
            return fail("ack_wait_ms", "it must be at least 300");
        }
        if self.takeover_ms < 1_000 {
            return fail("takeover_ms", "it must be at least 1000");
        }
        if !(1..=315_360_000).contains(&self.max_outage_s) {
            return fail("max_outage_s", "it must be between 1 and 315360000, which is ten years");
        }
        if !(1..=315_360_000).contains(&self.retention_s) {
            return fail("retention_s", "it must be between 1 and 315360000, which is ten years");
        }
        let retries = self.longest_retries();
        if self.retention() < retries {
            let problem = format!(
                "it is {} s, but the retries of an event can last {} s; set it to at least that, or lower \
                 max_attempts, handler_timeout_ms or max_backoff_ms",
                self.retention_s,
                retries.as_millis().div_ceil(1000)
            );
            return Err(ConsumerError::Config { key: "retention_s", problem });
        }
        Ok(())
    }

    /// The number of partitions, if there is more than one.
    pub(crate) fn several(&self) -> Option<u32> {
        (self.partitions > 1).then_some(self.partitions)
    }

    /// A JetStream context for this client, with the configured domain or prefix.
    pub(super) fn context(&self, client: async_nats::Client) -> jetstream::Context {
        let context = jetstream::context::ContextBuilder::new().timeout(Duration::from_secs(5));
        context.api_prefix(self.api()).build(client)
    }

    /// The prefix of the subjects of the JetStream API.
    pub(super) fn api(&self) -> String {
        match (&self.jetstream_domain, &self.api_prefix) {
            (Some(domain), _) => format!("$JS.{domain}.API"),
            (None, Some(prefix)) => prefix.clone(),
            (None, None) => "$JS.API".into(),
        }
    }

    /// The filters of what the consumer reads.
    pub(super) fn filters(&self) -> Vec<String> {
        match self.filter_subjects.is_empty() {
            true => vec![">".to_owned()],
            false => self.filter_subjects.clone(),
        }
    }

    pub(super) fn retention(&self) -> Duration {
        Duration::from_secs(self.retention_s)
    }

    /// How long all attempts at an event and the waits between them can take. Outages are not included, nor longer
    /// waits that a handler asks for.
    fn longest_retries(&self) -> Duration {
        let attempts = u128::from(self.max_attempts);
        let handling = attempts * u128::from(self.handler_timeout_ms);
        let (mut waits, mut wait) = (0, u128::from(self.backoff_ms));
        let longest = u128::from(self.max_backoff_ms);
        for retry in 1..attempts {
            // The random part can double the wait.
            waits += 2 * wait.min(longest);
            if wait >= longest {
                waits += 2 * longest * (attempts - 1 - retry);
                break;
            }
            wait *= 2;
        }
        Duration::from_millis(u64::try_from(handling + waits).unwrap_or(u64::MAX))
    }

    pub(super) fn max_backoff(&self) -> Duration {
        Duration::from_millis(self.max_backoff_ms)
    }

    pub(super) fn max_outage(&self) -> Duration {
        Duration::from_secs(self.max_outage_s)
    }

    pub(super) fn batch_linger(&self) -> Duration {
        Duration::from_millis(self.batch_linger_ms)
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

/// Whether this is a subject without wildcards and with at most this many words.
fn is_subject(text: &str, words: usize) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '*' && c != '>';
    text.split('.').count() <= words
        && text.len() <= 255
        && text.split('.').all(|word| !word.is_empty() && word.chars().all(plain))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

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
        assert_eq!(refused(ConsumerConfig { partitions: 1025, ..good() }), "partitions");
        let unordered = ConsumerConfig { partitions: 4, order: Order::None, ..good() };
        assert_eq!(refused(unordered), "partitions");
        assert_eq!(refused(ConsumerConfig { partitions: 64, ..good() }), "prefetch");
        assert_eq!(refused(ConsumerConfig { max_attempts: 0, ..good() }), "max_attempts");
        assert_eq!(refused(ConsumerConfig { max_backoff_ms: 1, ..good() }), "backoff_ms");
        assert_eq!(refused(ConsumerConfig { retention_s: 0, ..good() }), "retention_s");
    }

    #[test]
    fn a_domain_or_a_prefix_that_cannot_be_one_is_refused() {
        let config = |domain: Option<&str>, prefix: Option<&str>| ConsumerConfig {
            stream: "ORDERS".into(),
            name: "payments".into(),
            jetstream_domain: domain.map(Into::into),
            api_prefix: prefix.map(Into::into),
            ..Default::default()
        };
        for (domain, prefix, api) in [
            (None, None, "$JS.API"),
            (Some("hub"), None, "$JS.hub.API"),
            (None, Some("imported.API"), "imported.API"),
        ] {
            let config = config(domain, prefix);
            config.validate().unwrap();
            assert_eq!(config.api(), api);
        }
        for domain in ["", "a.b", "a b", "*", ">", "a\n"] {
            let said = config(Some(domain), None).validate().unwrap_err().to_string();
            assert!(said.contains("jetstream_domain"), "{domain:?}: {said}");
        }
        for prefix in ["", ".", "a.", "a..b", "a b", "a.>", "*"] {
            let said = config(None, Some(prefix)).validate().unwrap_err().to_string();
            assert!(said.contains("api_prefix"), "{prefix:?}: {said}");
        }
        let said = config(Some("hub"), Some("a")).validate().unwrap_err().to_string();
        assert!(said.contains("keep one of the two"), "{said}");
    }

    #[test]
    fn retries_that_outlive_the_retention_are_refused_with_both_figures() {
        // 4 attempts of 10 s, and waits of up to 2, 4 and 6 s.
        let config = ConsumerConfig {
            stream: "ORDERS".into(),
            name: "payments".into(),
            max_attempts: 4,
            handler_timeout_ms: 10_000,
            backoff_ms: 1_000,
            max_backoff_ms: 3_000,
            retention_s: 51,
            ..Default::default()
        };
        let said = config.validate().unwrap_err().to_string();
        assert!(said.contains("it is 51 s") && said.contains("can last 52 s"), "{said}");
        ConsumerConfig { retention_s: 52, ..config }.validate().unwrap();
        let endless = ConsumerConfig { max_attempts: u32::MAX, ..Default::default() };
        assert!(endless.longest_retries() > Duration::from_secs(1 << 37));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_duration_that_is_accepted_can_be_waited_for(
            ms in vec(
                prop_oneof![1 => any::<u64>(), 1 => 0..2 * LONGEST_MS, 8 => 1_000..100_000_u64],
                6,
            ),
            retention_s in prop_oneof![1 => any::<u64>(), 8 => 604_800..315_360_000_u64],
            max_outage_s in prop_oneof![1 => any::<u64>(), 8 => 1..315_360_000_u64],
        ) {
            let config = ConsumerConfig {
                stream: "ORDERS".into(),
                name: "payments".into(),
                batch_linger_ms: ms[0],
                max_backoff_ms: ms[1],
                handler_timeout_ms: ms[2],
                ack_wait_ms: ms[3],
                takeover_ms: ms[4],
                shutdown_timeout_ms: ms[5],
                retention_s,
                max_outage_s,
                ..Default::default()
            };
            match config.validate() {
                Ok(()) => {
                    let now = tokio::time::Instant::now();
                    let waits = ms.iter().map(|ms| Duration::from_millis(*ms));
                    for wait in waits.chain([config.retention(), config.max_outage()]) {
                        prop_assert!(now.checked_add(2 * wait).is_some());
                        prop_assert!(i64::try_from(wait.as_nanos()).is_ok(), "JetStream's unit");
                    }
                }
                Err(error) => prop_assert!(error.to_string().contains('_'), "{error}"),
            }
        }

        #[test]
        fn a_day_is_the_longest(which in 0_usize..6, beyond in LONGEST_MS + 1..) {
            type Setting = (&'static str, fn(&mut ConsumerConfig) -> &mut u64);
            let settings: [Setting; 6] = [
                ("batch_linger_ms", |config| &mut config.batch_linger_ms),
                ("max_backoff_ms", |config| &mut config.max_backoff_ms),
                ("handler_timeout_ms", |config| &mut config.handler_timeout_ms),
                ("ack_wait_ms", |config| &mut config.ack_wait_ms),
                ("takeover_ms", |config| &mut config.takeover_ms),
                ("shutdown_timeout_ms", |config| &mut config.shutdown_timeout_ms),
            ];
            let (key, setting) = settings[which];
            let mut config = ConsumerConfig {
                stream: "ORDERS".into(),
                name: "payments".into(),
                max_attempts: 1,
                ..Default::default()
            };
            *setting(&mut config) = LONGEST_MS;
            config.validate().unwrap();
            *setting(&mut config) = beyond;
            prop_assert!(config.validate().unwrap_err().to_string().contains(key));
        }
    }
}
