//! Streams for the usual patterns. They are created if missing, checked if they exist, and never changed.
//!
//! | | [work queue](StreamSpec::work_queue) | [fan-out](StreamSpec::fan_out) | [event log](StreamSpec::event_log) |
//! |---|---|---|---|
//! | who gets an event | one of the workers | every service, once | every service, even one that is added years later |
//! | how long it is kept | until it is handled | for a time, 7 days by default | for ever |
//! | consumers | one per subject, shared by its processes | one per service | one per service, and one per [generation](crate::generation) |
//! | order | [`HandlingOrder::None`](crate::HandlingOrder::None) to share the work | [`HandlingOrder::Key`](crate::HandlingOrder::Key) | [`HandlingOrder::Key`](crate::HandlingOrder::Key) |
//!
//! When they are full, all of them refuse new events rather than drop old ones, and the outbox waits. All of them are
//! stored in files, and accept the relay's fast ingest on nats-server 2.14 and newer.
//!
//! Fan-out is a stream with a maximum age, not one with JetStream's interest retention. With interest retention, the
//! server drops an event if the service that should get it has not created its consumer yet.
//!
//! ```no_run
//! use std::time::Duration;
//! use pillarbox_consumer::streams::StreamSpec;
//!
//! # async fn example(client: async_nats::Client) -> Result<(), Box<dyn std::error::Error>> {
//! let jetstream = async_nats::jetstream::new(client);
//! StreamSpec::fan_out("ORDERS", ["orders.>"])
//!     .max_age(Duration::from_secs(3 * 24 * 3600))
//!     .replicas(3)
//!     .ensure(&jetstream)
//!     .await?;
//! # Ok(()) }
//! ```

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use pillarbox_store::full_text;

/// The longest maximum age that a stream is given: a century. The server counts nanoseconds in 64 bits.
const LONGEST_MAX_AGE: Duration = Duration::from_secs(100 * 365 * 86_400);

/// How long a fan-out stream keeps its events by default: longer than a service should be down.
pub const FAN_OUT_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why [`StreamSpec::ensure`] failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A stream of this name exists with another setting. Pillarbox never changes an existing stream.
    #[error(
        "stream {stream} exists with {setting} = {found}, but {wanted} is wanted; ask for {found}, change the stream \
         by hand, or use another name"
    )]
    Differs {
        /// The stream.
        stream: String,
        /// The first setting that differs, by its name in the server's stream configuration.
        setting: &'static str,
        /// Its value on the server.
        found: String,
        /// The value that is wanted.
        wanted: String,
    },
    /// The server refused the stream, for example because a subject belongs to another stream or a limit is reached.
    #[error("the server refused stream {stream}: {reason}")]
    Refused {
        /// The stream.
        stream: String,
        /// What the server said.
        reason: String,
    },
    /// The server did not answer; try again.
    #[error("the server did not answer about stream {stream}; try again: {reason}")]
    Unavailable {
        /// The stream.
        stream: String,
        /// What happened.
        reason: String,
    },
}

/// A stream as it should be.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `ensure`"]
pub struct StreamSpec {
    config: Config,
}

impl StreamSpec {
    /// Each event goes to one worker, and the stream removes it once it is handled. The server allows one consumer per
    /// subject.
    pub fn work_queue<S: Into<String>>(
        name: impl Into<String>,
        subjects: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut spec = Self::of(name, subjects);
        spec.config.retention = RetentionPolicy::WorkQueue;
        spec
    }

    /// Each event goes to every service that listens, and is kept for [`FAN_OUT_MAX_AGE`].
    pub fn fan_out<S: Into<String>>(
        name: impl Into<String>,
        subjects: impl IntoIterator<Item = S>,
    ) -> Self {
        Self::of(name, subjects).max_age(FAN_OUT_MAX_AGE)
    }

    /// Each event is kept for ever, and nobody can delete or purge events. Projections are built from such a stream.
    pub fn event_log<S: Into<String>>(
        name: impl Into<String>,
        subjects: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut spec = Self::of(name, subjects);
        spec.config.deny_delete = true;
        spec.config.deny_purge = true;
        spec
    }

    fn of<S: Into<String>>(name: impl Into<String>, subjects: impl IntoIterator<Item = S>) -> Self {
        let config = Config {
            name: name.into(),
            subjects: subjects.into_iter().map(Into::into).collect(),
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            num_replicas: 1,
            allow_direct: true,
            ..Config::default()
        };
        Self { config }
    }

    /// Keeps events for this long, handled or not, but at most for a century. A consumer's `retention` must be at
    /// least as long.
    pub fn max_age(mut self, age: Duration) -> Self {
        // The server counts nanoseconds in 64 bits.
        let age = age.min(LONGEST_MAX_AGE);
        self.config.max_age = age;
        // The server refuses a longer window.
        if !age.is_zero() {
            self.config.duplicate_window = age.min(Duration::from_secs(120));
        }
        self
    }

    /// Refuses new events while the stream holds this many bytes. Meanwhile the outbox waits.
    pub fn max_bytes(mut self, bytes: i64) -> Self {
        self.config.max_bytes = bytes;
        self
    }

    /// On how many servers the stream is stored: 1, 3 or 5.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.config.num_replicas = replicas;
        self
    }

    /// Creates the stream if there is none of this name. Otherwise checks that it is as it should be. If several
    /// processes call this at once, one of them creates the stream. Settings that a `StreamSpec` does not have (the
    /// description, the placement, mirrors) are not checked.
    ///
    /// # Errors
    /// [`StreamError`]. An existing stream is never changed.
    pub async fn ensure(&self, jetstream: &jetstream::Context) -> Result<Stream, StreamError> {
        if let Some(stream) = self.find(jetstream).await? {
            return self.check(stream);
        }
        let mut config = self.config.clone();
        // Known by now: the server has answered.
        config.allow_batch_publish = jetstream.client().is_server_compatible(2, 14, 0);
        match jetstream.create_stream(config).await {
            Ok(_) => {}
            Err(error) => match error.kind() {
                // Another process was faster.
                CreateStreamErrorKind::JetStream(said)
                    if said.error_code() == ErrorCode::STREAM_NAME_EXIST => {}
                CreateStreamErrorKind::TimedOut
                | CreateStreamErrorKind::JetStreamUnavailable
                | CreateStreamErrorKind::Response => return Err(self.unavailable(&error)),
                _ => {
                    return Err(StreamError::Refused {
                        stream: self.config.name.clone(),
                        reason: full_text(&error),
                    });
                }
            },
        }
        match self.find(jetstream).await? {
            Some(stream) => self.check(stream),
            None => Err(StreamError::Unavailable {
                stream: self.config.name.clone(),
                reason: "it was created, and is gone".into(),
            }),
        }
    }

    async fn find(&self, jetstream: &jetstream::Context) -> Result<Option<Stream>, StreamError> {
        match jetstream.get_stream(&self.config.name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(said)
                    if said.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => {
                    Err(StreamError::Refused {
                        stream: self.config.name.clone(),
                        reason: "a stream's name must not be empty and must not contain dots, spaces or wildcards"
                            .into(),
                    })
                }
                _ => Err(self.unavailable(&error)),
            },
        }
    }

    fn unavailable(&self, error: &(dyn std::error::Error + 'static)) -> StreamError {
        StreamError::Unavailable { stream: self.config.name.clone(), reason: full_text(error) }
    }

    fn check(&self, stream: Stream) -> Result<Stream, StreamError> {
        let (found, wanted) = (&stream.cached_info().config, &self.config);
        let subjects = |config: &Config| {
            let mut subjects = config.subjects.clone();
            subjects.sort();
            format!("{subjects:?}")
        };
        // The server says -1 for no limit.
        let bytes = |config: &Config| match config.max_bytes {
            ..=0 => "unlimited".to_owned(),
            bytes => bytes.to_string(),
        };
        let settings = [
            ("subjects", subjects(found), subjects(wanted)),
            shown("retention", &found.retention, &wanted.retention),
            shown("discard", &found.discard, &wanted.discard),
            shown("storage", &found.storage, &wanted.storage),
            shown("max_age", &found.max_age, &wanted.max_age),
            ("max_bytes", bytes(found), bytes(wanted)),
            shown("num_replicas", &found.num_replicas, &wanted.num_replicas),
            shown("deny_delete", &found.deny_delete, &wanted.deny_delete),
            shown("deny_purge", &found.deny_purge, &wanted.deny_purge),
        ];
        match settings.into_iter().find(|(_, found, wanted)| found != wanted) {
            None => Ok(stream),
            Some((setting, found, wanted)) => Err(StreamError::Differs {
                stream: self.config.name.clone(),
                setting,
                found,
                wanted,
            }),
        }
    }
}

fn shown<T: std::fmt::Debug>(
    setting: &'static str,
    found: &T,
    wanted: &T,
) -> (&'static str, String, String) {
    (setting, format!("{found:?}"), format!("{wanted:?}"))
}
