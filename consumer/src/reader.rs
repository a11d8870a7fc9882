//! The connection over which a consumer reads.
//!
//! async-nats treats any fault in the headers of a message as a lost connection, and a carriage return within a
//! header's value ends the client for good. If a consumer read over the service's own client, each such message would
//! take that client down. So the consumer reads over a connection of its own if it can make one:
//!
//! - with the options that [`Consumer::reading_with`](super::Consumer::reading_with) was given;
//! - without options, to the same servers as the service's client, if they ask for neither a login nor TLS.
//!
//! Otherwise it reads over the service's client, which loses its connection about twice for each message that cannot be
//! parsed. Everything but the reading, such as questions about the stream, goes over the service's client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::{Client, ConnectOptions, ServerAddr};
use pillarbox_store::full_text;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::config::ConsumerConfig;

/// How long it may take to make a connection, and how long a working connection may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the broker is asked for a sign of life. A connection that swallows what is sent is then noticed within
/// seconds.
const PING_INTERVAL: Duration = Duration::from_secs(4);

/// How to make a connection.
#[derive(Clone, Debug)]
pub(super) struct How {
    pub(super) options: ConnectOptions,
    pub(super) servers: Vec<ServerAddr>,
}

/// The connection for reading. Clones share it.
#[derive(Clone)]
pub(super) struct Reader {
    service: Client,
    how: Option<How>,
    config: Arc<ConsumerConfig>,
    name: Arc<str>,
    own: Arc<Mutex<Option<Client>>>,
    said: Arc<AtomicBool>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("how", &self.how).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(service: Client, how: Option<How>, config: Arc<ConsumerConfig>) -> Self {
        let name = format!("pillarbox consumer {}", config.name).into();
        Self { service, how, config, name, own: Arc::default(), said: Arc::default() }
    }

    /// JetStream, through the client that reads.
    pub(super) async fn context(&self) -> jetstream::Context {
        self.config.context(self.client().await)
    }

    /// The client to read with: the consumer's own, which is made anew if it has ended, or the service's.
    async fn client(&self) -> Client {
        let mut own = self.own.lock().await;
        if let Some(client) = own.as_ref() {
            if answers(client).await {
                return client.clone();
            }
            *own = None;
        }
        let Some(How { options, servers }) = self.how().await else {
            return self.service.clone();
        };
        let reason = match timeout(PATIENCE, options.connect(&servers[..])).await {
            Ok(Ok(client)) => {
                *own = Some(client.clone());
                return client;
            }
            Ok(Err(error)) => full_text(&error),
            Err(_) => "no answer in time".to_owned(),
        };
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                client = &*self.name,
                reason,
                "the consumer has no connection of its own and reads over the service's client, which briefly loses \
                 its connection when a message cannot be parsed; use Consumer::reading_with"
            );
        }
        self.service.clone()
    }

    async fn how(&self) -> Option<How> {
        if let Some(How { options, servers }) = &self.how {
            return Some(How { options: options.clone(), servers: servers.clone() });
        }
        let server = self.service.try_server_info()?;
        if server.auth_required || server.tls_required {
            return None;
        }
        let pool = timeout(PATIENCE, self.service.server_pool()).await.ok()?.ok()?;
        let servers: Vec<_> = pool.into_iter().map(|server| server.addr).collect();
        if servers.is_empty()
            || servers.iter().any(|server| server.tls_required() || server.has_user_pass())
        {
            return None;
        }
        let inbox = self.service.new_inbox();
        let (prefix, _) = inbox.rsplit_once('.')?;
        let options = ConnectOptions::new()
            .name(&*self.name)
            .custom_inbox_prefix(prefix)
            .ping_interval(PING_INTERVAL);
        Some(How { options, servers })
    }

    /// Whether there is a connection now.
    pub(super) fn is_connected(&self) -> bool {
        match self.own.try_lock() {
            Ok(own) => own.as_ref().unwrap_or(&self.service).connection_state() == State::Connected,
            // It is being made.
            Err(_) => false,
        }
    }

    /// Waits until what was sent has left, if there is a connection.
    pub(super) async fn flush(&self) {
        let own = self.own.lock().await.clone();
        for client in own.iter().chain([&self.service]) {
            if client.connection_state() == State::Connected {
                let _ = timeout(PATIENCE, client.flush()).await;
            }
        }
    }
}

/// How often a connection is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The connection that a client had at one moment. A subscription continues over a new connection as if nothing had
/// happened, but messages that come over it may belong to another life of the stream.
#[derive(Debug)]
pub(super) struct Connection {
    client: Client,
    number: u64,
}

impl Connection {
    pub(super) fn of(client: &Client) -> Self {
        Self { client: client.clone(), number: number_of(client) }
    }

    pub(super) fn is_lost(&self) -> bool {
        number_of(&self.client) != self.number
    }

    /// Returns when there is another connection. Safe to cancel.
    pub(super) async fn lost(&self) {
        while !self.is_lost() {
            sleep(LOOK_EVERY).await;
        }
    }

    /// The connection that there is now.
    pub(super) fn renew(&mut self) {
        self.number = number_of(&self.client);
    }
}

/// How many connections a client has had.
fn number_of(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// Whether a client has a connection, and a task that serves it.
async fn answers(client: &Client) -> bool {
    client.connection_state() == State::Connected
        && matches!(timeout(PATIENCE, client.flush()).await, Ok(Ok(())))
}
