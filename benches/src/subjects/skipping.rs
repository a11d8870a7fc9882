//! How fast a consumer skips events that come again after they were handled, compared with handling new ones.
//!
//! Events come again after a stream was made anew, or a durable was deleted. So here a consumer that has handled all
//! events of the stream has its durable deleted before each round, and the time is taken until the last one is
//! acknowledged again. The others handle the beginning of the same stream under a new name. The handler inserts one
//! row, and the batch handler as many as there are events, as in `inbox_rate`.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use pillarbox::inbox::migrate;
use pillarbox::{Consumer, ConsumerConfig};
use pillarbox_testkit::Servers;
use serde::Serialize;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio_util::sync::CancellationToken;

use super::inbox_rate::{EFFECTS, RecordAll, record};
use crate::backlog::Outbox;
use crate::plot::Plot;
use crate::program::{Findings, Subject};
use crate::raw;
use crate::shipping::{STREAM, acknowledged, context, new_stream};
use crate::table::Table;
use crate::unit::{Goal, Unit, count};

const KEYS: u64 = 1000;
const WAYS: [&str; 4] = ["handling", "skipping", "handling in batches", "skipping in batches"];
/// The consumer that has handled everything before.
const BEFORE: &str = "before";

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Skipping {
    /// Events that come again in each round.
    #[arg(default_value_t = 50_000)]
    events: u64,
    /// How many of them are handled in a round, at the most.
    #[arg(default_value_t = 5_000)]
    handled: u64,
    /// Rounds that count.
    #[arg(default_value_t = 9)]
    rounds: usize,
}

impl Subject for Skipping {
    const NAME: &'static str = "skipping";

    fn quick() -> Self {
        Self { events: 600, handled: 300, rounds: 0 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        let database = Outbox::create(&servers.postgres).await?;
        migrate(database.pool()).await?;
        sqlx::raw_sql(EFFECTS).execute(database.pool()).await?;
        new_stream(&servers.nats).await?;
        raw::plain(&context(&servers.nats).await?, self.events, KEYS).await?;
        let pool = PgPoolOptions::new().max_connections(16).connect(database.url()).await?;
        // All are handled once, whatever the rounds handle.
        self.consume(servers, &pool, BEFORE, true, self.events).await?;
        let title = format!("{} events of 256 bytes come again", count(self.events));
        let mut table =
            Table::measure(&title, Unit::PerSecond, &WAYS, self.rounds, async |way, round| {
                let in_batches = way >= 2;
                match way % 2 {
                    0 => {
                        let name = format!("way-{way}-{round}");
                        self.consume(servers, &pool, &name, in_batches, self.handled).await
                    }
                    _ => self.skip(servers, &pool, in_batches).await,
                }
            })
            .await?;
        table.ratio("skipping", "handling", Some(Goal::AtLeast(10.0)))?;
        table.ratio("skipping in batches", "handling", Some(Goal::AtLeast(10.0)))?;
        table.ratio("skipping in batches", "handling in batches", None)?;
        pool.close().await;
        database.remove().await?;
        Ok(Findings { tables: vec![table], plot: Plot::Bars })
    }
}

impl Skipping {
    /// Lets the consumer that has handled everything read the stream again.
    async fn skip(&self, servers: &Servers, pool: &PgPool, in_batches: bool) -> Result<f64> {
        let rate = self.consume(servers, pool, BEFORE, in_batches, self.events).await?;
        let effects: i64 =
            sqlx::query_scalar("select count(*) from effects").fetch_one(pool).await?;
        ensure!(effects == 0, "{effects} events were handled again");
        Ok(rate)
    }

    /// Lets a consumer read the stream up to the event of this number. Returns the rate.
    async fn consume(
        &self,
        servers: &Servers,
        pool: &PgPool,
        name: &str,
        in_batches: bool,
        last: u64,
    ) -> Result<f64> {
        sqlx::raw_sql("truncate effects; checkpoint").execute(pool).await?;
        let config = ConsumerConfig {
            prefetch: 2_000,
            batch_size: 500,
            ..ConsumerConfig::new(STREAM, name)
        };
        let consumer = Consumer::with_config(servers.nats.connect().await?, pool.clone(), config)?;
        let shutdown = CancellationToken::new();
        let (stop, jetstream) = (shutdown.clone(), context(&servers.nats).await?);
        let begin = Instant::now();
        let running = match in_batches {
            true => tokio::spawn(consumer.on_batch(RecordAll).run(stop)),
            false => tokio::spawn(consumer.on(record).run(stop)),
        };
        let stream = jetstream.get_stream(STREAM).await?;
        let acknowledged = acknowledged(&stream, name, last).await?;
        let rate = acknowledged as f64 / begin.elapsed().as_secs_f64();
        shutdown.cancel();
        running.await?.context("the consumer")?;
        stream.delete_consumer(name).await?;
        Ok(rate)
    }
}
