//! What a consumer is told.

use std::time::Duration;

use async_nats::jetstream;
use pillarbox_event::partition;
use serde::{Deserialize, Serialize};

use super::error::ConsumerError;
use super::subjects::overlap;

/// The longest duration that a setting in milliseconds may have: a day.
const LONGEST_MS: u64 = 86_400_000;

/// A consumer's settings. Those in milliseconds are a day at the most.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsumerConfig {
    /// The stream to read.
    pub stream: String,
    /// The consumer's name: of the durable consumer on the server, of what it has handled in the inbox, and in
    /// its metrics and status. All processes of a service share it, and no two services do; under another name
    /// everything is new.
    pub name: String,
    /// The subjects to read, which may hold wildcards; empty: all of the stream's.
    pub filter_subjects: Vec<String>,
    /// Whether events of one key are handled in their order.
    pub order: Order,
    /// Into how many [partitions](pillarbox_event::partition) the relay puts the keys of these events. With more
    /// than one, all processes of the consumer share them, about evenly, and the order per key holds across the
    /// processes; what is in no partition is not read. The same in each process, and as in the relay; a change
    /// takes the steps in `docs/guides/ordering.md`. 1, or 0: there are none, and one process is active at a time.
    /// Needs a table `inbox_process`, a connection beside those of the pool, and an order.
    pub partitions: u32,
    /// How many handlers run at a time; each needs a connection of the pool.
    pub concurrency: usize,
    /// How many events are held at the most, running and waiting: 256 unless told. With partitions, each holds its part
    /// of it. When failing keys hold more than half of it, the one that holds the most is parked in the database with
    /// what waits behind it, up to 10,000 events or 256 MiB: see `docs/guides/ordering.md`.
    pub prefetch: usize,
    /// How many events a [`BatchHandler`](pillarbox_inbox::BatchHandler) is given at the most. Only for
    /// [`run_batches`](crate::Consumer::run_batches).
    pub batch_size: usize,
    /// How long an event waits for others to fill its batch, in milliseconds.
    pub batch_linger_ms: u64,
    /// How many failed attempts make a dead letter.
    pub max_attempts: u32,
    /// The wait after the first failed attempt, in milliseconds; it doubles with each, plus up to as much
    /// again at random.
    pub backoff_ms: u64,
    /// The longest wait between attempts, in milliseconds, before the random part.
    pub max_backoff_ms: u64,
    /// How long an outage that a handler tells of, or a second database that is away, is not counted for one event,
    /// in seconds. After that each failure counts as an attempt. A day unless told; at most ten years.
    pub max_outage_s: u64,
    /// How long a handler may take, in milliseconds; then it is dropped, and rolled back, and the attempt has
    /// failed. The database ends a transaction that is idle for two seconds more than this, and a statement that
    /// takes so long, so that neither a process that hangs nor a statement whose handler was dropped holds up its
    /// events for longer. (`statement_timeout` is lowered in the handler's transaction, and not raised.)
    pub handler_timeout_ms: u64,
    /// How long the server waits for a sign of life before it delivers again, in milliseconds. Slow handlers
    /// give one every third of it.
    pub ack_wait_ms: u64,
    /// How long a silent process keeps its place as the active one, in milliseconds, before another takes
    /// over. Only for [`Order::Key`].
    pub takeover_ms: u64,
    /// How long a stop waits for running handlers, in milliseconds.
    pub shutdown_timeout_ms: u64,
    /// How long it is remembered that an event was handled, in seconds; older rows are removed. At least as
    /// long as the stream keeps messages, and as retries can last, or an event could be handled twice: less is
    /// refused.
    pub retention_s: u64,
    /// What to do if there is no durable consumer, and the stream holds messages that this consumer may have handled so
    /// long ago that it has forgotten them. Only a stream without `max_age` comes to that. A consumer that has forgotten
    /// nothing, a new one above all, reads everything.
    pub after_loss: AfterLoss,
    /// The JetStream domain that the stream is in, where that is another one than that of the server to which the client
    /// is connected: behind a leaf node that has a JetStream of its own, the hub's. `None`: the server's.
    pub jetstream_domain: Option<String>,
    /// The prefix of the JetStream API, for an API that another account exports. `None`: `$JS.API`. Not together with
    /// `jetstream_domain`.
    pub api_prefix: Option<String>,
    /// The schema of the inbox tables.
    pub schema: String,
}

/// Whether events of one key are handled in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Order {
    /// In order per key, parallel across keys; a key goes on without its dead letters. Of several processes one is
    /// active and the others stand by; or, with [`partitions`](ConsumerConfig::partitions), all share the keys.
    #[default]
    Key,
    /// As [`Key`](Self::Key), and a key waits behind its dead letter: its later events are parked with it, and
    /// handled in order when it has been retried or discarded. Costs a query for each event.
    Strict,
    /// In any order. Several processes share the work.
    None,
}

/// What to do about a lost durable consumer, where what was handled is partly forgotten: see
/// [`ConsumerConfig::after_loss`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AfterLoss {
    /// Read nothing, and say so.
    #[default]
    Refuse,
    /// Read what is newer than all that was forgotten. What is older and was never handled is left out.
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
                return fail(key, "it is letters, digits, _ and -, 1 to 255 of them");
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
                    "it must be words parted by dots, without spaces or wildcards",
                );
            }
            if self.jetstream_domain.is_some() {
                return fail(
                    "api_prefix",
                    "jetstream_domain is set too, which makes a prefix of its own; keep one of the two",
                );
            }
        }
        if self.filter_subjects.iter().any(String::is_empty) {
            return fail("filter_subjects", "a subject is empty");
        }
        for (at, one) in self.filter_subjects.iter().enumerate() {
            if let Some(other) =
                self.filter_subjects[at + 1..].iter().find(|other| overlap(one, other))
            {
                let problem =
                    format!("{one} and {other} overlap: a subject may be in one of them only");
                return Err(ConsumerError::Config { key: "filter_subjects", problem });
            }
        }
        if self.partitions > partition::MOST {
            return fail("partitions", "it is at most 1024");
        }
        if self.several().is_some() && self.name.len() > 240 {
            return fail("name", "with partitions it is at most 240 long: their numbers follow it");
        }
        if self.several().is_some() && !self.order.keeps_keys() {
            return fail("partitions", "without an order processes share the work anyway: it is 1");
        }
        if !(1..=10_000).contains(&self.concurrency) {
            return fail("concurrency", "it is 1 to 10000");
        }
        if !(self.concurrency..=100_000).contains(&self.prefetch) {
            return fail("prefetch", "it is at least the concurrency, and at most 100000");
        }
        let least = self.concurrency.saturating_mul(self.several().unwrap_or(1) as usize);
        if self.prefetch < least {
            return fail(
                "prefetch",
                &format!(
                    "each partition may hold its part of it, and one alone should keep {} handlers busy: it is at \
                     least {least}",
                    self.concurrency
                ),
            );
        }
        if self.batch_size == 0 {
            return fail("batch_size", "it is at least 1");
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
        if !(1..=315_360_000).contains(&self.max_outage_s) {
            return fail("max_outage_s", "it must be between 1 and 315360000, which is ten years");
        }
        if !(1..=315_360_000).contains(&self.retention_s) {
            return fail("retention_s", "it is 1 second to 10 years");
        }
        let retries = self.longest_retries();
        if self.retention() < retries {
            let problem = format!(
                "it is {} s, and the retries of an event can last {} s: set it to that at least, or lower \
                 max_attempts, handler_timeout_ms or max_backoff_ms",
                self.retention_s,
                retries.as_millis().div_ceil(1000)
            );
            return Err(ConsumerError::Config { key: "retention_s", problem });
        }
        Ok(())
    }

    /// How many partitions there are, if there are several.
    pub(crate) fn several(&self) -> Option<u32> {
        (self.partitions > 1).then_some(self.partitions)
    }

    /// JetStream as a client reaches it: in the domain, or under the prefix, that is configured.
    pub(super) fn context(&self, client: async_nats::Client) -> jetstream::Context {
        let context = jetstream::context::ContextBuilder::new().timeout(Duration::from_secs(5));
        context.api_prefix(self.api()).build(client)
    }

    /// What the subjects begin with under which the JetStream API is asked.
    pub(super) fn api(&self) -> String {
        match (&self.jetstream_domain, &self.api_prefix) {
            (Some(domain), _) => format!("$JS.{domain}.API"),
            (None, Some(prefix)) => prefix.clone(),
            (None, None) => "$JS.API".into(),
        }
    }

    /// What it reads, as filters.
    pub(super) fn filters(&self) -> Vec<String> {
        match self.filter_subjects.is_empty() {
            true => vec![">".to_owned()],
            false => self.filter_subjects.clone(),
        }
    }

    pub(super) fn retention(&self) -> Duration {
        Duration::from_secs(self.retention_s)
    }

    /// How long all attempts at an event and the waits between them can take, without outages and handlers
    /// that ask for longer ones.
    fn longest_retries(&self) -> Duration {
        let attempts = u128::from(self.max_attempts);
        let handling = attempts * u128::from(self.handler_timeout_ms);
        let (mut waits, mut wait) = (0, u128::from(self.backoff_ms));
        let longest = u128::from(self.max_backoff_ms);
        for retry in 1..attempts {
            // Up to as much again at random.
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

/// Whether this is a subject without wildcards, of at most so many words.
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
