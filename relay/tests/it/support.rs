//! A shop with an outbox, a stream, and relays in this process. The tests of `cli/` have it too.
#![allow(dead_code)]

use std::collections::HashMap;
use std::sync::Once;
use std::time::Duration;

use async_nats::jetstream;
use futures::StreamExt;
use pillarbox_relay::{Relay, RelayConfig, RelayError, RelayStatus};
use pillarbox_testkit::{Scope, eventually, servers};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct Shop {
    pub scope: Scope,
    pub stream: String,
}

/// A message as it lies in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub subject: String,
    pub id: String,
    /// The `Nats-Msg-Id`.
    pub message_id: String,
    pub key: Option<String>,
    pub payload: String,
}

impl Shop {
    pub async fn open() -> Self {
        Self::on(servers().await.unwrap().scope().await.unwrap()).await
    }

    pub async fn on(scope: Scope) -> Self {
        Self::with_stream(scope, |config| config).await
    }

    pub async fn with_stream(
        scope: Scope,
        with: impl FnOnce(jetstream::stream::Config) -> jetstream::stream::Config,
    ) -> Self {
        log();
        pillarbox_outbox::migrate(scope.pool()).await.unwrap();
        let shop = Self { stream: scope.prefix().to_uppercase(), scope };
        shop.create_stream(with).await;
        shop
    }

    pub async fn create_stream(
        &self,
        with: impl FnOnce(jetstream::stream::Config) -> jetstream::stream::Config,
    ) {
        let config = jetstream::stream::Config {
            name: self.stream.clone(),
            subjects: vec![format!("{}.>", self.scope.prefix())],
            allow_batch_publish: true,
            ..Default::default()
        };
        self.jetstream().await.create_or_update_stream(with(config)).await.unwrap();
    }

    /// A context of the client version that the relay has.
    pub async fn jetstream(&self) -> jetstream::Context {
        let servers: Vec<&str> = self.scope.nats_url().split(',').collect();
        jetstream::new(async_nats::connect(&*servers).await.unwrap())
    }

    pub fn pool(&self) -> &PgPool {
        self.scope.pool()
    }

    pub fn topic(&self) -> String {
        format!("{}.placed", self.scope.prefix())
    }

    pub fn config(&self) -> RelayConfig {
        RelayConfig {
            database_url: self.scope.database_url().to_owned(),
            nats_url: self.scope.nats_url().to_owned(),
            lease: Duration::from_secs(2),
            ack_timeout: Duration::from_secs(2),
            ..RelayConfig::default()
        }
    }

    pub async fn insert(&self, connection: &mut PgConnection, key: &str, payload: &str) {
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, key, payload) values ('order.placed', $1, $2, $3)",
        )
        .bind(self.topic())
        .bind(key)
        .bind(payload.as_bytes())
        .execute(connection)
        .await
        .unwrap();
    }

    pub async fn insert_one(&self, key: &str, payload: &str) {
        let mut connection = self.pool().acquire().await.unwrap();
        self.insert(&mut connection, key, payload).await;
    }

    /// Inserts `count` events over ten keys, their payloads numbered, in one transaction.
    pub async fn insert_many(&self, count: i64) {
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, key, payload) \
             select 'order.placed', $1, (i % 10)::text, convert_to(i::text, 'utf8') from generate_series(1, $2) i",
        )
        .bind(self.topic())
        .bind(count)
        .execute(self.pool())
        .await
        .unwrap();
    }

    pub fn start(&self, config: RelayConfig) -> Started {
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(Relay::new(config).unwrap().run(shutdown.clone()));
        Started { running, shutdown }
    }

    pub async fn status(&self) -> RelayStatus {
        let mut connection = self.pool().acquire().await.unwrap();
        RelayStatus::read(&mut connection, "pillarbox", "default").await.unwrap()
    }

    /// Waits until nothing committed is left to ship, as of the saved cursor.
    pub async fn shipped(&self) {
        self.shipped_within(DEADLINE).await;
    }

    /// As [`shipped`](Self::shipped), with another deadline.
    pub async fn shipped_within(&self, deadline: Duration) {
        eventually("an empty backlog", deadline, async || {
            let mut connection = self.pool().acquire().await.map_err(|error| error.to_string())?;
            let status = RelayStatus::read(&mut connection, "pillarbox", "default")
                .await
                .map_err(|error| error.to_string())?;
            match (status.backlog_events, status.epoch) {
                (0, Some(_)) => Ok(Some(())),
                (events, _) => Err(format!("a backlog of {events} events")),
            }
        })
        .await
        .unwrap();
    }

    pub async fn messages(&self) -> u64 {
        self.jetstream().await.get_stream(&self.stream).await.unwrap().cached_info().state.messages
    }

    pub async fn until_messages(&self, wanted: u64) {
        let jetstream = self.jetstream().await;
        eventually(&format!("{wanted} messages"), DEADLINE, async || {
            let stream =
                jetstream.get_stream(&self.stream).await.map_err(|error| error.to_string())?;
            match stream.cached_info().state.messages {
                found if found >= wanted => Ok(Some(())),
                found => Err(format!("{found} messages")),
            }
        })
        .await
        .unwrap();
    }

    /// Everything in the stream, in its order.
    pub async fn stored(&self) -> Vec<Stored> {
        let stream = self.jetstream().await.get_stream(&self.stream).await.unwrap();
        let mut left = stream.cached_info().state.messages;
        let mut stored = Vec::new();
        if left == 0 {
            return stored;
        }
        let config = jetstream::consumer::pull::OrderedConfig::default();
        let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
        while left > 0 {
            let message =
                tokio::time::timeout(DEADLINE, messages.next()).await.unwrap().unwrap().unwrap();
            let header = |name: &str| {
                message
                    .headers
                    .as_ref()
                    .and_then(|headers| headers.get(name))
                    .map(|value| value.as_str().to_owned())
            };
            stored.push(Stored {
                subject: message.subject.to_string(),
                id: header("ce-id").unwrap(),
                message_id: header("Nats-Msg-Id").unwrap(),
                key: header("ce-partitionkey"),
                payload: String::from_utf8_lossy(&message.payload).into_owned(),
            });
            left -= 1;
        }
        stored
    }

    /// The stream holds what the outbox holds, each event once, and each key in the order of positions, which
    /// is the order of commits for writers that go one after the other.
    pub async fn assert_each_once_in_order(&self) {
        let rows =
            sqlx::query("select event_id::text, key from pillarbox.outbox order by position")
                .fetch_all(self.pool())
                .await
                .unwrap();
        let by_key = |events: Vec<(String, Option<String>)>| {
            let mut keys: HashMap<Option<String>, Vec<String>> = HashMap::new();
            for (id, key) in events {
                keys.entry(key).or_default().push(id);
            }
            keys
        };
        let wanted = by_key(rows.iter().map(|row| (row.get(0), row.get(1))).collect());
        let found =
            by_key(self.stored().await.into_iter().map(|stored| (stored.id, stored.key)).collect());
        for (key, wanted) in &wanted {
            let found = found.get(key).map_or(&[][..], Vec::as_slice);
            assert_eq!(wanted.len(), found.len(), "how many events of key {key:?}");
            if let Some(at) = (0..wanted.len()).find(|at| wanted[*at] != found[*at]) {
                panic!(
                    "key {key:?}: event {} of {} should be {}, and is {}",
                    at,
                    wanted.len(),
                    wanted[at],
                    found[at]
                );
            }
        }
        assert_eq!(wanted.len(), found.len(), "keys");
    }

    pub async fn number(&self, sql: &str) -> i64 {
        sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(self.pool()).await.unwrap().get(0)
    }
}

pub struct Started {
    pub running: JoinHandle<Result<(), RelayError>>,
    pub shutdown: CancellationToken,
}

impl Started {
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn log() {
    static LOG: Once = Once::new();
    LOG.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| "error".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
    });
}
