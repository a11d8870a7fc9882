//! Connections to the broker: the relay's, on which it opens sinks, and [`Connection`], for looking at streams.

mod connection;
mod error;
mod headers;
mod login;

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use async_nats::{Client, ClientError, ConnectErrorKind, Event, ServerAddr};

pub use self::connection::{AskError, Connection, Retention, Server, StreamInfo};
pub use self::error::BrokerError;
pub use self::headers::{Begin, HeaderReader, MessageHead, StreamLife};
use crate::acknowledged::Acknowledged;
use crate::config::{NatsConfig, RelayConfig, SinkChoice, without_secrets};
use crate::health::Observer;
use crate::sink::{FastIngest, FirstSends, KeyedWindow, Sink, Targets};
use crate::streams::Api;

/// The time limit for connecting to one server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the broker. After a loss it reconnects by itself, without a limit on the number of attempts.
#[derive(Clone)]
pub(crate) struct Broker {
    client: Client,
    nats: NatsConfig,
    choice: SinkChoice,
    ack_timeout: Duration,
    streams: Targets,
    acknowledged: Acknowledged,
    /// Passed to every sink that is opened.
    pub(crate) first_sends: Option<FirstSends>,
}

impl Broker {
    pub(crate) async fn connect(
        config: &RelayConfig,
        observer: &Observer,
    ) -> Result<Self, BrokerError> {
        let (url, servers) = servers(&config.nats_url)?;
        let (options, login) = login::options(&config.nats, &servers).await?;
        let (log, said, observer) = (url.clone(), Said::default(), observer.clone());
        let client = options
            .name(format!("pillarbox relay {}", config.name))
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(config.ack_timeout))
            .reconnect_delay_callback(delay_before)
            .event_callback(move |event| {
                match event {
                    Event::Connected => observer.broker_connected(true),
                    Event::Disconnected => observer.broker_connected(false),
                    _ => {}
                }
                said.event(&log, &event);
                std::future::ready(())
            })
            .connect(servers)
            .await
            .map_err(|source| BrokerError::connect(url, &login, &config.nats, source))?;
        let streams = Targets::new(context(&client, config.ack_timeout, &config.nats));
        // Behind the prefix of an imported account, the domain is unknown.
        let domain = match (&config.nats.jetstream_domain, &config.nats.api_prefix) {
            (Some(domain), _) => Some(domain.clone()),
            (None, Some(_)) => None,
            (None, None) => Some(client.server_info().domain.unwrap_or_default()),
        };
        Ok(Self {
            client,
            nats: config.nats.clone(),
            choice: config.sink,
            ack_timeout: config.ack_timeout,
            streams,
            acknowledged: Acknowledged::through(domain),
            first_sends: None,
        })
    }

    /// Opens a sink. Each sink has its own context, so that messages that a failed sink left unacknowledged do not
    /// count against the next one. `after_refusal`: a batch of the last sink was refused or got no answer.
    pub(crate) fn open_sink(&mut self, after_refusal: bool) -> Box<dyn Sink + '_> {
        let context = context(&self.client, self.ack_timeout, &self.nats);
        let fast = self.choice == SinkChoice::Auto && self.client.is_server_compatible(2, 14, 0);
        if fast {
            let acknowledged = self.acknowledged.clone();
            let (timeout, streams) = (self.ack_timeout, &mut self.streams);
            let sink = FastIngest::new(context, timeout, streams, acknowledged, after_refusal);
            Box::new(sink.watching(self.first_sends.clone()))
        } else {
            let sink = KeyedWindow::new(context, self.acknowledged.clone());
            Box::new(sink.watching(self.first_sends.clone()))
        }
    }

    /// How far the streams have acknowledged, as far as is known.
    pub(crate) fn acknowledged(&self) -> Acknowledged {
        self.acknowledged.clone()
    }

    /// A context for messages that do not go through the open sink.
    pub(crate) fn context(&self) -> Context {
        context(&self.client, self.ack_timeout, &self.nats)
    }

    /// For questions about streams.
    pub(crate) fn api(&self) -> Api {
        Api::new(self.context())
    }

    /// Forgets what is known of the streams, because storing failed.
    pub(crate) fn forget_streams(&mut self) {
        self.streams.forget();
    }
}

/// How long to wait before this attempt to connect. The first attempt has number 1.
fn delay_before(attempt: usize) -> Duration {
    match attempt {
        0 | 1 => Duration::ZERO,
        _ => Duration::from_millis(50 << attempt.min(6)).min(Duration::from_secs(2)),
    }
}

/// The problems that were logged since the connection was last established, so that each is logged once.
#[derive(Default)]
struct Said(Mutex<HashSet<String>>);

impl Said {
    /// At most this many different problems are remembered.
    const MOST: usize = 32;

    fn event(&self, broker: &str, event: &Event) {
        match event {
            Event::Connected => {
                tracing::info!(broker, "connected to the broker");
                self.forget();
            }
            Event::Disconnected => tracing::warn!(broker, "the connection to the broker is lost"),
            event if is_refusal(event) && self.first(event.to_string()) => {
                tracing::warn!(broker, error = %event, "the broker refuses something")
            }
            _ => tracing::debug!(broker, %event, "broker"),
        }
    }

    fn first(&self, text: String) -> bool {
        let mut said = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        said.len() < Self::MOST && said.insert(text)
    }

    fn forget(&self) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    }
}

/// Whether an operator must act: a permission is missing, or a login or certificate is no longer accepted on reconnect.
fn is_refusal(event: &Event) -> bool {
    let kinds = [
        ConnectErrorKind::AuthorizationViolation,
        ConnectErrorKind::Authentication,
        ConnectErrorKind::Tls,
    ];
    match event {
        Event::ServerError(_) => true,
        Event::ClientError(ClientError::Other(text)) => {
            kinds.iter().any(|kind| text.starts_with(&kind.to_string()))
        }
        _ => false,
    }
}

/// The URL without secrets, and the servers that it names.
fn servers(nats_url: &str) -> Result<(String, Vec<ServerAddr>), BrokerError> {
    let shown = without_secrets(nats_url);
    let servers =
        nats_url.split(',').map(|url| url.trim().parse::<ServerAddr>()).collect::<Result<_, _>>();
    match servers {
        Ok(servers) => Ok((shown, servers)),
        Err(source) => Err(BrokerError::Url { url: shown, source }),
    }
}

/// A context that uses the configured JetStream domain or API prefix.
fn context(client: &Client, timeout: Duration, config: &NatsConfig) -> Context {
    let context =
        jetstream::context::ContextBuilder::new().timeout(timeout).max_ack_inflight(16 * 1024);
    let client = client.clone();
    match (&config.jetstream_domain, &config.api_prefix) {
        (Some(domain), _) => context.domain(domain).build(client),
        (None, Some(prefix)) => context.api_prefix(prefix).build(client),
        (None, None) => context.build(client),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_to_connect_comes_at_once_and_later_ones_after_longer_and_longer() {
        assert_eq!(delay_before(1), Duration::ZERO);
        let delays: Vec<_> = (2..=8).map(|attempt| delay_before(attempt).as_millis()).collect();
        assert_eq!(delays, [200, 400, 800, 1_600, 2_000, 2_000, 2_000]);
        assert_eq!(delay_before(usize::MAX), Duration::from_secs(2));
    }
}
