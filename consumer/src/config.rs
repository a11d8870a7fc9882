//! A consumer's settings.

use std::time::Duration;

use async_nats::jetstream;
use pillarbox_event::partition;
use pillarbox_store::duration;
use serde::{Deserialize, Serialize};

use super::error::ConsumerError;
use super::subjects::overlap;

/// The longest duration of most settings.
const A_DAY: Duration = Duration::from_secs(86_400);

/// The longest duration of the settings that may last longer than a day.
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A consumer's settings: [`new`](Self::new) takes the two that every consumer needs, and the others have a default.
///
/// ```
/// use std::time::Duration;
/// use pillarbox_consumer::ConsumerConfig;
///
/// let config = ConsumerConfig {
///     concurrency: 4,
///     handler_timeout: Duration::from_secs(10),
///     ..ConsumerConfig::new("ORDERS", "payments")
/// };
/// config.validate()?;
/// # Ok::<(), pillarbox_consumer::ConsumerError>(())
/// ```
///
/// With serde, a duration is a whole number whose unit is in its name: `handler_timeout_ms`, or `retention_s`. A part
/// of that unit is left out when it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default = "ConsumerConfig::unnamed", deny_unknown_fields)]
pub struct ConsumerConfig {
    /// The stream to read. 1 to 255 letters, digits, `_` or `-`.
    pub stream: String,
    /// The consumer's name. It names the durable consumer on the server, the consumer's rows in the inbox, and its
    /// metrics and status. All processes of a service must use the same name, and no two services may share one. Under
    /// another name, every event counts as not handled yet. 1 to 255 letters, digits, `_` or `-`.
    pub name: String,
    /// The subjects to read. They may hold wildcards, and must not overlap. Empty, the default, means the topics of the
    /// handlers' events, or all subjects of the stream if a handler takes events of every type. `>` means all subjects.
    pub filter_subjects: Vec<String>,
    /// Whether events of one key are handled in their order. The default is [`HandlingOrder::Key`].
    pub order: HandlingOrder,
    /// The number of [partitions](pillarbox_event::partition) into which the relay puts the keys of these events. With
    /// more than one, all processes of the consumer share the partitions about evenly, and the order per key holds
    /// across the processes. Events in no partition are not read. The number must be the same in every process and in
    /// the relay. To change it, follow the steps in `docs/guides/ordering.md`. With 1 or 0, there are no partitions,
    /// and one process is active at a time. Partitions need the table `inbox_process`, one connection more than those
    /// of the pool, and an [`order`](Self::order) other than `None`. At most 1024. The default is 1.
    pub partitions: u32,
    /// How many handlers run at the same time. Each needs a connection of the pool. Between 1 and 10000. The default
    /// is 8.
    pub concurrency: usize,
    /// The most events that are held at the same time, running or waiting. The default is 256. With partitions, the
    /// number is divided among them. When failing keys hold more than half of these places, the consumer parks the key
    /// that holds the most in the database, with all of its waiting events, up to 10,000 events or 256 MiB: see
    /// `docs/guides/ordering.md`. Must be between `concurrency` and 100000, and with
    /// partitions at least `concurrency` × `partitions`. 256 by default.
    pub prefetch: usize,
    /// The most events that a [`BatchHandler`](pillarbox_inbox::BatchHandler) is given in one call. The default is 100.
    pub batch_size: usize,
    /// How long an event waits for others to fill its batch. At most a day. The default is 5 ms.
    #[serde(rename = "batch_linger_ms", with = "duration::milliseconds")]
    pub batch_linger: Duration,
    /// After how many failed attempts an event becomes a dead letter. At least 1. The default is 5.
    pub max_attempts: u32,
    /// The wait after the first failed attempt. It doubles with each further failure, up to
    /// [`max_backoff`](Self::max_backoff). A random part of up to the same length is added to each wait. At least a
    /// millisecond. The default is 100 ms.
    #[serde(rename = "backoff_ms", with = "duration::milliseconds")]
    pub backoff: Duration,
    /// The longest wait between attempts, without the random part. At least [`backoff`](Self::backoff), and at most a
    /// day. The default is 30 s.
    #[serde(rename = "max_backoff_ms", with = "duration::milliseconds")]
    pub max_backoff: Duration,
    /// How long failures of one event are not counted while a handler reports an outage, or while a second database is
    /// away. After that, each failure counts as an attempt. Between a second and ten years. The default is a day.
    #[serde(rename = "max_outage_s", with = "duration::seconds")]
    pub max_outage: Duration,
    /// How long a handler may take. After that, the consumer drops the handler and rolls its
    /// transaction back, and the attempt has failed. The database ends a transaction that is idle, or a statement that
    /// runs, for two seconds longer than this. So neither a process that hangs nor a statement whose handler was
    /// dropped holds up its events for longer. (In the handler's transaction, `statement_timeout` may be lowered, but
    /// is never raised.) Between a millisecond and a day. The default is 30 s.
    #[serde(rename = "handler_timeout_ms", with = "duration::milliseconds")]
    pub handler_timeout: Duration,
    /// How long the server waits for an acknowledgement or a sign of life before it delivers an event again. While a
    /// slow handler runs, the consumer sends a sign of life every third of this time. Between 300 ms and a day. The
    /// default is 30 s.
    #[serde(rename = "ack_wait_ms", with = "duration::milliseconds")]
    pub ack_wait: Duration,
    /// How long a process that gives no sign of life stays the active one before another process takes over. Not used
    /// with [`HandlingOrder::None`]. Between a second and a day. The default is 6 s.
    #[serde(rename = "takeover_ms", with = "duration::milliseconds")]
    pub takeover: Duration,
    /// How long a shutdown waits for running handlers. Then it drops them. At most a day; zero drops them at once. The
    /// default is 10 s.
    #[serde(rename = "shutdown_timeout_ms", with = "duration::milliseconds")]
    pub shutdown_timeout: Duration,
    /// How long the inbox remembers that an event was handled. Older rows are removed. It must be at least as long as
    /// the stream keeps messages, and as long as the retries of an event can last. Otherwise an event could be handled
    /// twice, so a shorter time is refused. Between a second and ten years. The default is 7 days.
    #[serde(rename = "retention_s", with = "duration::seconds")]
    pub retention: Duration,
    /// What to do if the durable consumer is missing, and the stream holds messages that this consumer may have handled
    /// so long ago that it has forgotten them. This can only happen with a stream without `max_age`. A consumer that
    /// has forgotten nothing, such as a new one, reads everything. The default is [`AfterLoss::Refuse`].
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
pub enum HandlingOrder {
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

impl HandlingOrder {
    /// Whether the events of a key follow one another.
    pub(super) fn keeps_keys(self) -> bool {
        self != Self::None
    }
}

/// This setting cannot be used.
fn fail(key: &'static str, problem: &str) -> Result<(), ConsumerError> {
    Err(ConsumerError::Config { key, problem: problem.to_owned() })
}

impl ConsumerConfig {
    /// The settings of the consumer of this name that reads this stream, with a default for every other setting.
    pub fn new(stream: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            stream: stream.into(),
            name: name.into(),
            filter_subjects: Vec::new(),
            order: HandlingOrder::Key,
            partitions: 1,
            concurrency: 8,
            prefetch: 256,
            batch_size: 100,
            batch_linger: Duration::from_millis(5),
            max_attempts: 5,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(30),
            max_outage: A_DAY,
            handler_timeout: Duration::from_secs(30),
            ack_wait: Duration::from_secs(30),
            takeover: Duration::from_secs(6),
            shutdown_timeout: Duration::from_secs(10),
            retention: 7 * A_DAY,
            after_loss: AfterLoss::Refuse,
            jetstream_domain: None,
            api_prefix: None,
            schema: "pillarbox".into(),
        }
    }

    /// What serde fills in. `validate` refuses the missing names.
    fn unnamed() -> Self {
        Self::new("", "")
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`ConsumerError::Config`] with the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), ConsumerError> {
        self.check_names()?;
        self.check_filters()?;
        self.check_partitions()?;
        self.check_bounds()?;
        self.check_times()?;
        self.check_retention()
    }

    fn check_names(&self) -> Result<(), ConsumerError> {
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
        Ok(())
    }

    fn check_filters(&self) -> Result<(), ConsumerError> {
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
        Ok(())
    }

    fn check_partitions(&self) -> Result<(), ConsumerError> {
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
                "with HandlingOrder::None it must be 1, because processes share the work without \
            partitions",
            );
        }
        Ok(())
    }

    fn check_bounds(&self) -> Result<(), ConsumerError> {
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
        if self.max_attempts == 0 {
            return fail("max_attempts", "it must be at least 1");
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), ConsumerError> {
        for (key, duration) in [
            ("batch_linger", self.batch_linger),
            ("max_backoff", self.max_backoff),
            ("handler_timeout", self.handler_timeout),
            ("ack_wait", self.ack_wait),
            ("takeover", self.takeover),
            ("shutdown_timeout", self.shutdown_timeout),
        ] {
            if duration > A_DAY {
                return fail(key, "it must be at most a day");
            }
        }
        if self.backoff < Duration::from_millis(1) || self.max_backoff < self.backoff {
            return fail("backoff", "it must be at least 1 ms and at most max_backoff");
        }
        if self.handler_timeout < Duration::from_millis(1) {
            return fail("handler_timeout", "it must be at least 1 ms");
        }
        if self.ack_wait < Duration::from_millis(300) {
            return fail("ack_wait", "it must be at least 300 ms");
        }
        if self.takeover < Duration::from_secs(1) {
            return fail("takeover", "it must be at least 1 s");
        }
        for (key, duration) in [("max_outage", self.max_outage), ("retention", self.retention)] {
            if !(Duration::from_secs(1)..=TEN_YEARS).contains(&duration) {
                return fail(key, "it must be between 1 s and ten years");
            }
        }
        Ok(())
    }

    /// The inbox must remember an event for as long as its retries can last.
    fn check_retention(&self) -> Result<(), ConsumerError> {
        let retries = self.longest_retries();
        if self.retention < retries {
            let problem = format!(
                "it is {} s, but the retries of an event can last {} s; set it to at least that, or lower \
                 max_attempts, handler_timeout or max_backoff",
                self.retention.as_secs(),
                retries.as_millis().div_ceil(1000)
            );
            return Err(ConsumerError::Config { key: "retention", problem });
        }
        Ok(())
    }

    /// The same, for the events of one topic.
    pub(super) fn of_topic(&self, topic: &str) -> Self {
        Self { filter_subjects: vec![topic.to_owned()], ..self.clone() }
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

    /// How long all attempts at an event and the waits between them can take. Outages are not included, nor longer
    /// waits that a handler asks for.
    fn longest_retries(&self) -> Duration {
        let attempts = u128::from(self.max_attempts);
        let handling = attempts * self.handler_timeout.as_millis();
        let (mut waits, mut wait) = (0, self.backoff.as_millis());
        let longest = self.max_backoff.as_millis();
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

    const DAY_MS: u64 = 86_400_000;

    #[test]
    fn a_setting_that_cannot_be_used_is_named() {
        let good = || ConsumerConfig::new("ORDERS", "payments");
        good().validate().unwrap();
        let refused = |config: ConsumerConfig| match config.validate() {
            Err(ConsumerError::Config { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(ConsumerConfig::new("", "payments")), "stream");
        assert_eq!(refused(ConsumerConfig::new("ORDERS", "")), "name");
        assert_eq!(refused(ConsumerConfig { name: "a.b".into(), ..good() }), "name");
        assert_eq!(refused(ConsumerConfig { concurrency: 0, ..good() }), "concurrency");
        assert_eq!(refused(ConsumerConfig { prefetch: 1, ..good() }), "prefetch");
        assert_eq!(refused(ConsumerConfig { partitions: 1025, ..good() }), "partitions");
        let unordered = ConsumerConfig { partitions: 4, order: HandlingOrder::None, ..good() };
        assert_eq!(refused(unordered), "partitions");
        assert_eq!(refused(ConsumerConfig { partitions: 64, ..good() }), "prefetch");
        assert_eq!(refused(ConsumerConfig { max_attempts: 0, ..good() }), "max_attempts");
        assert_eq!(
            refused(ConsumerConfig { max_backoff: Duration::from_millis(1), ..good() }),
            "backoff"
        );
        assert_eq!(refused(ConsumerConfig { retention: Duration::ZERO, ..good() }), "retention");
    }

    #[test]
    fn a_file_gives_durations_as_numbers_with_their_unit() {
        let read = |text: &str| serde_json::from_str::<ConsumerConfig>(text);
        let config = read(
            r#"{"stream": "ORDERS", "name": "payments", "handler_timeout_ms": 1500, "retention_s": 86400}"#,
        )
        .unwrap();
        config.validate().unwrap();
        assert_eq!(config.handler_timeout, Duration::from_millis(1_500));
        assert_eq!(config.retention, A_DAY);
        assert_eq!(config.takeover, ConsumerConfig::new("", "").takeover);
        let written = serde_json::to_value(&config).unwrap();
        assert_eq!(
            (&written["handler_timeout_ms"], &written["ack_wait_ms"]),
            (&1500.into(), &30000.into())
        );
        assert_eq!(
            (&written["retention_s"], &written["max_outage_s"]),
            (&86400.into(), &86400.into())
        );
        assert!(read(&written.to_string()).unwrap().handler_timeout == config.handler_timeout);
        let said = read(r#"{"handler_timeout": 5}"#).unwrap_err().to_string();
        assert!(said.contains("handler_timeout_ms"), "{said}");
        let said = read(r#"{"name": "payments"}"#).unwrap().validate().unwrap_err().to_string();
        assert!(said.contains("stream"), "{said}");
    }

    #[test]
    fn a_domain_or_a_prefix_that_cannot_be_one_is_refused() {
        let config = |domain: Option<&str>, prefix: Option<&str>| ConsumerConfig {
            jetstream_domain: domain.map(Into::into),
            api_prefix: prefix.map(Into::into),
            ..ConsumerConfig::new("ORDERS", "payments")
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
            max_attempts: 4,
            handler_timeout: Duration::from_secs(10),
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(3),
            retention: Duration::from_secs(51),
            ..ConsumerConfig::new("ORDERS", "payments")
        };
        let said = config.validate().unwrap_err().to_string();
        assert!(said.contains("it is 51 s") && said.contains("can last 52 s"), "{said}");
        ConsumerConfig { retention: Duration::from_secs(52), ..config }.validate().unwrap();
        let endless =
            ConsumerConfig { max_attempts: u32::MAX, ..ConsumerConfig::new("ORDERS", "payments") };
        assert!(endless.longest_retries() > Duration::from_secs(1 << 37));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_duration_that_is_accepted_can_be_waited_for(
            ms in vec(
                prop_oneof![1 => any::<u64>(), 1 => 0..2 * DAY_MS, 8 => 1_000..100_000_u64],
                6,
            ),
            retention_s in prop_oneof![1 => any::<u64>(), 8 => 604_800..315_360_000_u64],
            max_outage_s in prop_oneof![1 => any::<u64>(), 8 => 1..315_360_000_u64],
        ) {
            let waits: Vec<_> = ms.into_iter().map(Duration::from_millis).collect();
            let config = ConsumerConfig {
                batch_linger: waits[0],
                max_backoff: waits[1],
                handler_timeout: waits[2],
                ack_wait: waits[3],
                takeover: waits[4],
                shutdown_timeout: waits[5],
                retention: Duration::from_secs(retention_s),
                max_outage: Duration::from_secs(max_outage_s),
                ..ConsumerConfig::new("ORDERS", "payments")
            };
            match config.validate() {
                Ok(()) => {
                    let now = tokio::time::Instant::now();
                    for wait in waits.into_iter().chain([config.retention, config.max_outage]) {
                        prop_assert!(now.checked_add(2 * wait).is_some());
                        prop_assert!(i64::try_from(wait.as_nanos()).is_ok(), "JetStream's unit");
                    }
                }
                Err(error) => {
                    let said = error.to_string();
                    prop_assert!(said.contains("cannot be used: it "), "{said}");
                }
            }
        }

        #[test]
        fn a_day_is_the_longest(which in 0_usize..6, beyond in DAY_MS + 1..) {
            type Setting = (&'static str, fn(&mut ConsumerConfig) -> &mut Duration);
            let settings: [Setting; 6] = [
                ("batch_linger", |config| &mut config.batch_linger),
                ("max_backoff", |config| &mut config.max_backoff),
                ("handler_timeout", |config| &mut config.handler_timeout),
                ("ack_wait", |config| &mut config.ack_wait),
                ("takeover", |config| &mut config.takeover),
                ("shutdown_timeout", |config| &mut config.shutdown_timeout),
            ];
            let (key, setting) = settings[which];
            let mut config = ConsumerConfig {
                max_attempts: 1,
                ..ConsumerConfig::new("ORDERS", "payments")
            };
            *setting(&mut config) = A_DAY;
            config.validate().unwrap();
            *setting(&mut config) = Duration::from_millis(beyond);
            prop_assert!(config.validate().unwrap_err().to_string().contains(key));
        }
    }
}
