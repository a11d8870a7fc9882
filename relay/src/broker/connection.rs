//! A connection to the broker that does not belong to a running relay: for looking at streams, and for a
//! [replay](crate::replay).

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use async_nats::jetstream::stream::{DiscardPolicy, Info, RetentionPolicy, StorageType};

use super::{BrokerError, CONNECT_TIMEOUT, context, login, servers};
use crate::config::NatsConfig;
use crate::streams::Api;

/// How long one answer of the JetStream API may take.
const ANSWER: Duration = Duration::from_secs(5);

/// A connection to the broker with the login and the JetStream domain of a relay. It reconnects by itself. Dropping the
/// last clone closes it.
#[derive(Clone, Debug)]
pub struct Connection {
    context: Context,
    api: Api,
}

/// What a server reports about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// The server's version, for example `2.14.0`.
    pub version: String,
    /// Whether the server supports fast ingest, which nats-server does from version 2.14 on.
    pub has_fast_ingest: bool,
    /// Whether the server is part of a cluster.
    pub is_clustered: bool,
}

/// The configuration and the state of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamInfo {
    /// Whether the stream acknowledges what it stores. A sealed stream stores nothing.
    pub acknowledges: bool,
    /// Whether the stream has a leader. Without one it stores nothing.
    pub has_leader: bool,
    /// The servers whose replicas are offline or behind.
    pub lagging_replicas: Vec<String>,
    /// How many replicas the stream has.
    pub replicas: usize,
    /// Whether the stream refuses new messages at its limits. If not, it drops its oldest messages.
    pub discards_new: bool,
    /// How long messages are kept.
    pub retention: Retention,
    /// The limit in bytes. `None`: no limit.
    pub max_bytes: Option<u64>,
    /// The limit in messages. `None`: no limit.
    pub max_messages: Option<u64>,
    /// The age at which messages expire. `None`: they do not expire.
    pub max_age: Option<Duration>,
    /// How long the stream drops messages whose id it has stored.
    pub duplicate_window: Duration,
    /// Whether the stream is in memory, so that a restart of its servers loses its messages.
    pub in_memory: bool,
    /// Whether the stream takes fast-ingest batches.
    pub allows_batches: bool,
    /// How many bytes the stream holds.
    pub bytes: u64,
    /// How many messages the stream holds.
    pub messages: u64,
    /// How many consumers the stream has.
    pub consumers: usize,
}

/// How long a stream keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retention {
    /// Until a limit of the stream is reached.
    Limits,
    /// Until every consumer has acknowledged them.
    Interest,
    /// Until one consumer has acknowledged them.
    WorkQueue,
}

/// Why the JetStream API did not answer a question about a stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The text is not a valid subject, so no stream can take it.
    #[error("{subject:?} is no subject")]
    Subject {
        /// The subject.
        subject: String,
    },
    /// The API refused, failed, or did not answer.
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl Connection {
    /// Connects as a relay with these settings does. Each server has five seconds to accept the client.
    ///
    /// # Errors
    /// [`BrokerError`] if no server accepted the client.
    pub async fn open(nats_url: &str, config: &NatsConfig) -> Result<Self, BrokerError> {
        let (url, servers) = servers(nats_url)?;
        let (options, login) = login::options(config, &servers).await?;
        let client = options
            .name("pillarbox")
            .connection_timeout(CONNECT_TIMEOUT)
            .connect(servers)
            .await
            .map_err(|source| BrokerError::connect(url, &login, config, source))?;
        let context = context(&client, ANSWER, config);
        Ok(Self { api: Api::new(context.clone()), context })
    }

    /// What the connected server reports about itself.
    pub fn server(&self) -> Server {
        let client = self.context.client();
        let info = client.server_info();
        Server {
            has_fast_ingest: client.is_server_compatible(2, 14, 0),
            is_clustered: info.cluster.is_some(),
            version: info.version,
        }
    }

    /// The stream that takes this subject. `None`: the server answered that none does, in the configured domain.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn stream_of(&self, subject: &str) -> Result<Option<String>, AskError> {
        match self.context.stream_by_subject(subject).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                GetStreamByNameErrorKind::NotFound => Ok(None),
                GetStreamByNameErrorKind::InvalidSubject => {
                    Err(AskError::Subject { subject: subject.to_owned() })
                }
                _ => Err(AskError::Failed(Box::new(error))),
            },
        }
    }

    /// The configuration and the state of a stream. The name of a stream in another domain begins with the domain and a
    /// dot, as in [`StreamMarks`](crate::StreamMarks).
    ///
    /// # Errors
    /// [`AskError::Failed`], also if there is no such stream.
    pub async fn stream(&self, name: &str) -> Result<StreamInfo, AskError> {
        match self.api.stream(name).await {
            Ok(stream) => Ok(StreamInfo::of(stream.cached_info())),
            Err(error) => Err(AskError::Failed(Box::new(error))),
        }
    }

    /// The context for sending messages.
    pub(crate) fn context(&self) -> Context {
        self.context.clone()
    }
}

impl StreamInfo {
    fn of(info: &Info) -> Self {
        let (set, state) = (&info.config, &info.state);
        let limit = |most: i64| u64::try_from(most).ok().filter(|most| *most > 0);
        let replicas = info.cluster.iter().flat_map(|cluster| &cluster.replicas);
        Self {
            acknowledges: !set.no_ack && !set.sealed,
            has_leader: info.cluster.as_ref().is_none_or(|cluster| cluster.leader.is_some()),
            lagging_replicas: replicas
                .filter(|replica| replica.offline || !replica.current)
                .map(|replica| replica.name.clone())
                .collect(),
            replicas: set.num_replicas,
            discards_new: set.discard == DiscardPolicy::New,
            retention: match set.retention {
                RetentionPolicy::Limits => Retention::Limits,
                RetentionPolicy::Interest => Retention::Interest,
                RetentionPolicy::WorkQueue => Retention::WorkQueue,
            },
            max_bytes: limit(set.max_bytes),
            max_messages: limit(set.max_messages),
            max_age: Some(set.max_age).filter(|age| !age.is_zero()),
            duplicate_window: set.duplicate_window,
            in_memory: set.storage == StorageType::Memory,
            allows_batches: set.allow_batch_publish,
            bytes: state.bytes,
            messages: state.messages,
            consumers: state.consumer_count,
        }
    }
}
