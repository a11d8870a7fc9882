//! What the inbox costs a consumer, compared with the same handler and acknowledgements without it.
//!
//! The handler inserts one row. The batch handler inserts as many rows as there are events, up to 500. Without the
//! inbox, each event also has a transaction: either from a pool, as usual, or on connections that the handlers keep to
//! themselves, so that the pool need not check them.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::Context;
use clap::Args;
use pillarbox::event::RawEvent;
use pillarbox::inbox::{Delivery, InboxError, Outcome, migrate};
use pillarbox::{
    BatchHandler, Consumer, ConsumerConfig, ConsumerError, HandlerError, Received, Tx,
};
use pillarbox_testkit::Servers;
use serde::Serialize;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::backlog::{Outbox, SUBJECT};
use crate::plot::Plot;
use crate::program::{Findings, Subject};
use crate::raw;
use crate::shipping::{STREAM, acknowledged, context, new_stream};
use crate::table::Table;
use crate::unit::{Goal, Unit, count};

const KEYS: u64 = 1000;
const CONCURRENCY: usize = 8;
const WAYS: [&str; 4] = ["without", "single", "batch", "without, no pool"];

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct InboxRate {
    /// Events in each round.
    #[arg(default_value_t = 5_000)]
    events: u64,
    /// Rounds that count.
    #[arg(default_value_t = 9)]
    rounds: usize,
}

impl Subject for InboxRate {
    const NAME: &'static str = "inbox_rate";

    fn quick() -> Self {
        Self { events: 300, rounds: 0 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        let database = Outbox::create(&servers.postgres).await?;
        migrate(database.pool()).await?;
        sqlx::raw_sql(EFFECTS).execute(database.pool()).await?;
        new_stream(&servers.nats).await?;
        let jetstream = context(&servers.nats).await?;
        for number in 0..self.events {
            let (headers, payload) = raw::message(&raw::event(number, KEYS)?);
            jetstream.publish_with_headers(SUBJECT, headers, payload).await?.await?;
        }
        let title = format!("Handling {} events of 256 bytes", count(self.events));
        let mut table =
            Table::measure(&title, Unit::PerSecond, &WAYS, self.rounds, async |way, round| {
                let name = format!("way-{way}-{round}");
                self.consume(servers, database.url(), &jetstream, way, name).await
            })
            .await?;
        table.ratio("single", "without", Some(Goal::AtLeast(0.85)))?;
        table.ratio("single", "without, no pool", None)?;
        table.ratio("batch", "single", Some(Goal::AtLeast(5.0)))?;
        database.remove().await?;
        Ok(Findings { tables: vec![table], plot: Plot::Bars })
    }
}

/// The table that handlers write to.
pub(crate) const EFFECTS: &str =
    "create table effects (event_id text not null, bytes integer not null)";

impl InboxRate {
    /// Lets a new consumer handle all events, and returns its rate.
    async fn consume(
        &self,
        servers: &Servers,
        database_url: &str,
        jetstream: &Context,
        way: usize,
        name: String,
    ) -> Result<f64> {
        let pool = PgPoolOptions::new().max_connections(16).connect(database_url).await?;
        sqlx::raw_sql("truncate effects; checkpoint").execute(&pool).await?;
        let config = ConsumerConfig {
            concurrency: CONCURRENCY,
            prefetch: 2_000,
            batch_size: 500,
            ..ConsumerConfig::new(STREAM, name.clone())
        };
        let consumer = Consumer::with_config(servers.nats.connect().await?, pool.clone(), config)?;
        let shutdown = CancellationToken::new();
        let begin = Instant::now();
        let running = tokio::spawn(run(consumer, way, pool.clone(), shutdown.clone()));
        let stream = jetstream.get_stream(STREAM).await?;
        let handled = acknowledged(&stream, &name, self.events).await?;
        let rate = handled as f64 / begin.elapsed().as_secs_f64();
        shutdown.cancel();
        running.await?.context("the consumer")?;
        let effects: i64 =
            sqlx::query_scalar("select count(*) from effects").fetch_one(&pool).await?;
        ensure!(u64::try_from(effects)? == self.events, "{effects} effects");
        stream.delete_consumer(&name).await?;
        pool.close().await;
        Ok(rate)
    }
}

async fn run(
    consumer: Consumer,
    way: usize,
    pool: PgPool,
    shutdown: CancellationToken,
) -> Result<(), ConsumerError> {
    match way {
        0 => {
            let handle = move |delivery| from_pool(pool.clone(), delivery);
            consumer.run_service(tower::service_fn(handle), shutdown).await
        }
        3 => {
            let spare = Arc::new(Mutex::new(Vec::new()));
            let handle = move |delivery| without_pool(pool.clone(), spare.clone(), delivery);
            consumer.run_service(tower::service_fn(handle), shutdown).await
        }
        1 => consumer.on(record).run(shutdown).await,
        _ => consumer.on_batch(RecordAll).run(shutdown).await,
    }
}

/// A handler that inserts a row.
pub(crate) async fn record(tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
    effect(tx, &event).await?;
    Ok(())
}

/// Inserts that row.
pub(crate) async fn effect(connection: &mut PgConnection, event: &RawEvent) -> sqlx::Result<()> {
    sqlx::query("insert into effects (event_id, bytes) values ($1, $2)")
        .bind(event.id().as_str())
        .bind(event.payload().len() as i32)
        .execute(connection)
        .await?;
    Ok(())
}

/// A batch handler that inserts such a row for each event.
pub(crate) struct RecordAll;

impl BatchHandler<RawEvent> for RecordAll {
    async fn handle(&self, tx: &mut Tx, events: &[Received<RawEvent>]) -> Result<(), HandlerError> {
        let ids: Vec<_> = events.iter().map(|event| event.id().as_str()).collect();
        let bytes: Vec<_> = events.iter().map(|event| event.payload().len() as i32).collect();
        sqlx::query(
            "insert into effects (event_id, bytes) select * from unnest($1::text[], $2::int[])",
        )
        .bind(ids)
        .bind(bytes)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

/// The usual handler without the inbox.
async fn from_pool(pool: PgPool, delivery: Delivery) -> Result<Outcome, InboxError> {
    handled(async { insert(pool.begin().await?, &delivery).await }.await)
}

/// A handler without the inbox, on a connection from `spare`.
async fn without_pool(
    pool: PgPool,
    spare: Arc<Mutex<Vec<PgConnection>>>,
    delivery: Delivery,
) -> Result<Outcome, InboxError> {
    let result = async {
        let kept = spare.lock().await.pop();
        let mut connection = match kept {
            Some(connection) => connection,
            None => pool.acquire().await?.detach(),
        };
        insert(connection.begin().await?, &delivery).await?;
        spare.lock().await.push(connection);
        Ok(())
    };
    handled(result.await)
}

async fn insert(mut tx: Transaction<'_, Postgres>, delivery: &Delivery) -> sqlx::Result<()> {
    effect(&mut tx, &delivery.event).await?;
    tx.commit().await
}

fn handled(result: sqlx::Result<()>) -> Result<Outcome, InboxError> {
    result
        .map(|()| Outcome::Handled)
        .map_err(|error| InboxError::Database { doing: "handle", source: error })
}
