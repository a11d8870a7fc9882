//! A place to measure at: a database with the business tables and an outbox, and a stream.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::{self, Context};
use futures::{Stream, StreamExt, TryStreamExt};
use pillarbox_testkit::{Servers, eventually};
use sqlx::{AssertSqlSafe, PgPool};

use crate::contestant::{Contestant, Running};
use crate::event::{HELD_KEY, Placed};

/// A database and a stream for one measurement.
pub struct Site {
    pub pool: PgPool,
    pub database_url: String,
    pub nats_url: String,
    pub jetstream: Context,
    database: String,
    admin: PgPool,
    stream: String,
}

/// A message in the stream.
pub struct Stored {
    pub placed: Placed,
    /// When the server stored it, in microseconds since 1970.
    pub stored_at: i64,
}

fn fresh_name(prefix: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

impl Site {
    /// Creates a new database with what the contestant needs, and a new stream.
    pub async fn open(servers: &Servers, contestant: &dyn Contestant) -> Result<Self> {
        let name = fresh_name("shop");
        let database = servers.postgres.create_database(&name).await?;
        let admin = PgPool::connect_lazy(&servers.postgres.url("postgres"))?;
        sqlx::raw_sql(include_str!("../sql/shop.sql")).execute(&database.pool).await?;
        sqlx::query("insert into account (key) select generate_series(0, $1)")
            .bind(HELD_KEY)
            .execute(&database.pool)
            .await?;
        let mut site = Self {
            pool: database.pool,
            database_url: database.url,
            nats_url: servers.nats.url(),
            jetstream: jetstream::new(servers.nats.connect().await?),
            database: name,
            admin,
            stream: String::new(),
        };
        contestant
            .prepare(&site)
            .await
            .with_context(|| format!("preparing {}", contestant.name()))?;
        site.new_stream().await?;
        Ok(site)
    }

    /// A new, empty stream in place of the one before.
    pub async fn new_stream(&mut self) -> Result<()> {
        self.drop_stream().await?;
        self.stream = fresh_name("stream");
        let config = jetstream::stream::Config {
            name: self.stream.clone(),
            subjects: vec![format!("{}.>", self.stream)],
            allow_batch_publish: true,
            ..Default::default()
        };
        self.jetstream.create_stream(config).await?;
        Ok(())
    }

    async fn drop_stream(&self) -> Result<()> {
        if !self.stream.is_empty() {
            self.jetstream.delete_stream(&self.stream).await?;
        }
        Ok(())
    }

    /// The word that the stream's subjects begin with.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// The subject of all events.
    pub fn topic(&self) -> String {
        format!("{}.{}", self.stream, crate::event::TYPE)
    }

    /// How many messages the stream holds.
    pub async fn stored(&self) -> Result<i64> {
        let stream = self.jetstream.get_stream(&self.stream).await?;
        Ok(i64::try_from(stream.cached_info().state.messages)?)
    }

    /// Waits until the stream holds `count` messages, the time is up, or nothing has arrived for `stall`. Returns the
    /// number of messages.
    pub async fn until_stored(
        &self,
        running: &mut Running,
        count: i64,
        limit: Duration,
        stall: Duration,
    ) -> Result<i64> {
        let mut last = (0, tokio::time::Instant::now());
        let end = last.1 + limit;
        loop {
            let stored = self.stored().await?;
            let now = tokio::time::Instant::now();
            if stored > last.0 {
                last = (stored, now);
            }
            if stored >= count || now >= end || now - last.1 >= stall {
                return Ok(stored);
            }
            running.check()?;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// What the stream holds and will hold, in order.
    pub async fn messages(&self) -> Result<impl Stream<Item = Result<Stored>> + use<>> {
        let stream = self.jetstream.get_stream(&self.stream).await?;
        let consumer = stream.create_consumer(OrderedConfig::default()).await?;
        Ok(consumer.messages().await?.map_err(anyhow::Error::from).map(|message| {
            let message = message?;
            let stored_at = message.info().map_err(anyhow::Error::from_boxed)?.published;
            let placed = serde_json::from_slice(&message.payload)?;
            Ok(Stored {
                placed,
                stored_at: i64::try_from(stored_at.unix_timestamp_nanos() / 1000)?,
            })
        }))
    }

    /// How many transactions of each key have committed.
    pub async fn commits(&self) -> Result<Vec<i64>> {
        Ok(sqlx::query_scalar("select n from account order by key").fetch_all(&self.pool).await?)
    }

    /// Lets what has been written come to rest, so that its checkpoint does not fall into what is measured.
    pub async fn settle(&self) -> Result<()> {
        for statement in ["analyze", "checkpoint"] {
            sqlx::raw_sql(statement).execute(&self.pool).await?;
        }
        Ok(())
    }

    /// Removes database and stream.
    pub async fn close(self) -> Result<()> {
        self.drop_stream().await?;
        self.pool.close().await;
        let drop = format!("drop database {} with (force)", self.database);
        eventually("the database to go", Duration::from_secs(20), async || {
            let dropped = sqlx::raw_sql(AssertSqlSafe(drop.clone())).execute(&self.admin).await;
            dropped.map(|_| Some(()))
        })
        .await?;
        Ok(())
    }
}
