//! The connection to the broker, and the sinks opened on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};

use crate::checkpoint::Acknowledged;
use crate::config::{RelayConfig, SinkChoice, without_secrets};
use crate::health::Observer;
use crate::sink::{FastIngest, KeyedWindow, Sink, Streams};

/// A connection to the broker. It reconnects by itself for as long as it takes.
#[derive(Clone)]
pub(crate) struct Broker {
    client: Client,
    choice: SinkChoice,
    ack_timeout: Duration,
    streams: Streams,
    acknowledged: Acknowledged,
    /// How often it has been connected.
    pub(crate) connections: Arc<AtomicU64>,
}

/// Why the broker could not be connected to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// `nats_url` is not one.
    #[error("nats_url = {url:?} cannot be used")]
    Url {
        /// The URL, without secrets.
        url: String,
        /// What is wrong with it.
        #[source]
        source: std::io::Error,
    },
    /// No connection.
    #[error("no connection to the broker at {url}")]
    Connect {
        /// The URL, without secrets.
        url: String,
        /// What the client said.
        #[source]
        source: async_nats::ConnectError,
    },
}

impl Broker {
    pub(crate) async fn connect(
        config: &RelayConfig,
        observer: &Observer,
    ) -> Result<Self, BrokerError> {
        let (shown, servers) = servers(&config.nats_url)?;
        let (log, observer) = (shown.clone(), observer.clone());
        let connections = Arc::new(AtomicU64::new(0));
        let counted = connections.clone();
        let client = ConnectOptions::new()
            .name(format!("pillarbox relay {}", config.name))
            .connection_timeout(Duration::from_secs(5))
            .request_timeout(Some(config.ack_timeout()))
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis(50 << attempts.min(6)).min(Duration::from_secs(2))
            })
            .event_callback(move |event| {
                match event {
                    Event::Connected => {
                        counted.fetch_add(1, Ordering::Relaxed);
                        observer.broker_connected(true);
                        tracing::info!(broker = log, "connected to the broker")
                    }
                    Event::Disconnected => {
                        observer.broker_connected(false);
                        tracing::warn!(broker = log, "the connection to the broker is lost")
                    }
                    other => tracing::debug!(broker = log, event = %other, "broker"),
                }
                std::future::ready(())
            })
            .connect(servers)
            .await
            .map_err(|source| BrokerError::Connect { url: shown, source })?;
        let streams = Streams::new(context(&client, config.ack_timeout()));
        Ok(Self {
            client,
            choice: config.sink,
            ack_timeout: config.ack_timeout(),
            streams,
            acknowledged: Acknowledged::default(),
            connections,
        })
    }

    /// Opens a sink. Each has a context of its own, so that what a failed one left unacknowledged does not
    /// count against the next. `after_refusal`: the last one failed because a batch was refused.
    pub(crate) fn open_sink(&mut self, after_refusal: bool) -> Box<dyn Sink + '_> {
        let context = context(&self.client, self.ack_timeout);
        let fast = self.choice == SinkChoice::Auto && self.client.is_server_compatible(2, 14, 0);
        if fast {
            let acknowledged = self.acknowledged.clone();
            let (timeout, streams) = (self.ack_timeout, &mut self.streams);
            Box::new(FastIngest::new(context, timeout, streams, acknowledged, after_refusal))
        } else {
            Box::new(KeyedWindow::new(context, self.acknowledged.clone()))
        }
    }

    /// How far the streams have acknowledged, as far as known.
    pub(crate) fn acknowledged(&self) -> Acknowledged {
        self.acknowledged.clone()
    }

    /// How often the broker has been connected to.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// A context for messages beside those of the open sink.
    pub(crate) fn context(&self) -> Context {
        context(&self.client, self.ack_timeout)
    }

    /// Forgets what is known of the streams, because storing failed.
    pub(crate) fn forget_streams(&mut self) {
        self.streams.forget();
    }
}

/// A JetStream context on a connection of its own, of the client version that the relay has.
///
/// # Errors
/// [`BrokerError`].
pub async fn jetstream(nats_url: &str) -> Result<Context, BrokerError> {
    let (url, servers) = servers(nats_url)?;
    let client = async_nats::connect(servers)
        .await
        .map_err(|source| BrokerError::Connect { url, source })?;
    Ok(context(&client, Duration::from_secs(5)))
}

/// The URL without secrets, and the servers it names.
fn servers(nats_url: &str) -> Result<(String, Vec<ServerAddr>), BrokerError> {
    let shown = without_secrets(nats_url);
    let servers =
        nats_url.split(',').map(|url| url.trim().parse::<ServerAddr>()).collect::<Result<_, _>>();
    match servers {
        Ok(servers) => Ok((shown, servers)),
        Err(source) => Err(BrokerError::Url { url: shown, source }),
    }
}

fn context(client: &Client, timeout: Duration) -> Context {
    jetstream::context::ContextBuilder::new()
        .timeout(timeout)
        .max_ack_inflight(16 * 1024)
        .build(client.clone())
}
