//! The broker loses messages that it had acknowledged. The relay goes back and ships them again, and every effect
//! happens once.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use futures::StreamExt;
use pillarbox::event::RawEvent;
use pillarbox::{Consumer, ConsumerConfig, HandlerError, Router, Tx};
use pillarbox_relay::{Relay, RelayConfig};
use pillarbox_testkit::{Nats, Postgres, Scope, Servers, eventually};
use sqlx::Row;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

/// A service that publishes, a relay, and a service that consumes, on their own servers.
struct Shop {
    scope: Scope,
    // Its fields are dropped first: the tasks end before the servers.
    running: JoinSet<()>,
    shutdown: CancellationToken,
}

async fn record(tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
    sqlx::query("insert into effects (event_id) values ($1)")
        .bind(event.id().as_str())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

impl Shop {
    async fn open(servers: &Servers) -> Self {
        let scope = servers.scope().await.unwrap();
        pillarbox::outbox::migrate(scope.pool()).await.unwrap();
        pillarbox::inbox::migrate(scope.pool()).await.unwrap();
        sqlx::raw_sql("create table effects (event_id text)").execute(scope.pool()).await.unwrap();
        Self { scope, running: JoinSet::new(), shutdown: CancellationToken::new() }
    }

    async fn create_stream(&self) {
        let config = stream::Config {
            name: "ORDERS".into(),
            subjects: vec!["orders.>".into()],
            allow_batch_publish: true,
            ..Default::default()
        };
        self.scope.jetstream().create_stream(config).await.unwrap();
    }

    fn start_relay(&mut self) {
        let config = RelayConfig {
            database_url: self.scope.database_url().to_owned(),
            nats_url: self.scope.nats_url().to_owned(),
            lease: Duration::from_secs(2),
            ack_timeout: Duration::from_secs(2),
            ..RelayConfig::default()
        };
        let relay = Relay::new(config).unwrap().run(self.shutdown.clone());
        self.running.spawn(async { relay.await.unwrap() });
    }

    fn start_consumer(&mut self) {
        let config = ConsumerConfig {
            takeover: Duration::from_secs(2),
            ..ConsumerConfig::new("ORDERS", "payments")
        };
        let (nats, pool) = (self.scope.nats().clone(), self.scope.pool().clone());
        let consumer = Consumer::with_config(nats, pool, config).unwrap();
        let router = Router::new().on(record);
        let running = consumer.router(router).run(self.shutdown.clone());
        self.running.spawn(async { running.await.unwrap() });
    }

    async fn insert(&self, count: i64) {
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, key, payload) \
             select 'order.placed', 'orders.placed', (i % 10)::text, '{}' from generate_series(1, $1) i",
        )
        .bind(count)
        .execute(self.scope.pool())
        .await
        .unwrap();
    }

    async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query(sql).fetch_one(self.scope.pool()).await.unwrap().get(0)
    }

    async fn until_effects(&self, wanted: i64) {
        eventually(&format!("{wanted} effects"), DEADLINE, async || {
            match self.number("select count(*) from effects").await {
                found if found == wanted => Ok(Some(())),
                found => Err(format!("{found}")),
            }
        })
        .await
        .unwrap();
    }

    /// Waits until a checkpoint covers everything.
    async fn until_checkpoint(&self) {
        let covered = "select count(*) from pillarbox.relay_checkpoint where (cursor ->> 'high')::bigint \
                       = (select max(position) from pillarbox.outbox)";
        eventually("a checkpoint", DEADLINE, async || {
            Ok::<_, String>((self.number(covered).await > 0).then_some(()))
        })
        .await
        .unwrap();
    }

    async fn until_messages(&self, wanted: u64) {
        let jetstream = self.scope.jetstream();
        eventually(&format!("{wanted} messages"), DEADLINE, async || {
            let stream = jetstream.get_stream("ORDERS").await.map_err(|error| error.to_string())?;
            match stream.cached_info().state.messages {
                found if found == wanted => Ok(Some(())),
                found => Err(format!("{found}")),
            }
        })
        .await
        .unwrap();
    }

    /// Asserts that the stream holds each event of the outbox once, with each key in order.
    async fn assert_stream_is_whole(&self) {
        let rows =
            sqlx::query("select event_id::text, key from pillarbox.outbox order by position")
                .fetch_all(self.scope.pool())
                .await
                .unwrap();
        let by_key = |events: Vec<(String, String)>| {
            let mut keys: HashMap<String, Vec<String>> = HashMap::new();
            for (id, key) in events {
                keys.entry(key).or_default().push(id);
            }
            keys
        };
        let stream = self.scope.jetstream().get_stream("ORDERS").await.unwrap();
        let config = jetstream::consumer::pull::OrderedConfig::default();
        let messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
        let held = usize::try_from(stream.cached_info().state.messages).unwrap();
        let found: Vec<_> = messages
            .take(held)
            .map(|message| {
                let headers = message.unwrap().headers.clone().unwrap();
                let header = |name: &str| headers.get(name).unwrap().as_str().to_owned();
                (header("ce-id"), header("ce-partitionkey"))
            })
            .collect()
            .await;
        let wanted = by_key(rows.iter().map(|row| (row.get(0), row.get(1))).collect());
        assert!(by_key(found) == wanted, "the stream differs from the outbox");
    }

    async fn close(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended.unwrap();
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn own_servers() -> Servers {
    Servers { postgres: Postgres::start().await.unwrap(), nats: Nats::start().await.unwrap() }
}

#[tokio::test]
async fn a_broker_put_back_to_an_older_state_gets_again_what_it_lost() {
    let mut servers = own_servers().await;
    let mut shop = Shop::open(&servers).await;
    shop.create_stream().await;
    shop.start_relay();
    shop.start_consumer();
    shop.insert(500).await;
    shop.until_effects(500).await;

    servers.nats.stop().await.unwrap();
    let backup = servers.nats.folder().join("backup");
    copy(&servers.nats.store_dir(), &backup);
    servers.nats.restart().await.unwrap();
    shop.insert(500).await;
    shop.until_effects(1_000).await;
    shop.until_checkpoint().await;

    servers.nats.stop().await.unwrap();
    std::fs::remove_dir_all(servers.nats.store_dir()).unwrap();
    copy(&backup, &servers.nats.store_dir());
    servers.nats.restart().await.unwrap();
    // The relay must notice without a new event.
    shop.until_messages(1_000).await;
    shop.insert(100).await;
    shop.until_effects(1_100).await;
    shop.assert_stream_is_whole().await;
    let doubled =
        "select count(*) from (select from effects group by event_id having count(*) > 1) as more";
    assert_eq!(shop.number(doubled).await, 0);
    shop.close().await;
}

#[tokio::test]
async fn a_stream_that_is_deleted_and_made_anew_gets_everything_again() {
    let servers = own_servers().await;
    let mut shop = Shop::open(&servers).await;
    shop.create_stream().await;
    shop.start_relay();
    shop.start_consumer();
    shop.insert(500).await;
    shop.until_effects(500).await;
    shop.until_checkpoint().await;

    shop.scope.jetstream().delete_stream("ORDERS").await.unwrap();
    shop.create_stream().await;
    shop.until_messages(500).await;
    shop.insert(100).await;
    shop.until_effects(600).await;
    shop.assert_stream_is_whole().await;
    let doubled =
        "select count(*) from (select from effects group by event_id having count(*) > 1) as more";
    assert_eq!(shop.number(doubled).await, 0);
    shop.close().await;
}
