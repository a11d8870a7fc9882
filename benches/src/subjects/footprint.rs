//! How many bytes an event needs in the tables, in the write-ahead log and in the stream, and how much of a core a
//! relay takes that has nothing to do.
//!
//! The events have 256 bytes, a key and no headers of their own, and each is in its own transaction. The bytes do not
//! depend on the machine's speed. They depend a little on how much is written between two checkpoints, because the
//! first change of a page after a checkpoint logs the whole page. The longer the run, the smaller that share.
//!
//! The log's bytes are the difference between a transaction and the same transaction without the event (producer, with
//! one business row) or without the inbox (consumer, with one row).
//!
//! The idle relay is a process of its own, with an empty outbox. Its start is left out: it has shipped an event before.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use pillarbox::event::RawEvent;
use pillarbox::{Consumer, ConsumerConfig, Router};
use pillarbox_relay::SinkChoice;
use pillarbox_testkit::Servers;
use serde::Serialize;
use sqlx::PgPool;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::inbox_rate::{EFFECTS, effect, record};
use crate::backlog::{EVENT_TYPE, Outbox, PAYLOAD_BYTES, SUBJECT};
use crate::plot::Plot;
use crate::program::{Findings, Subject};
use crate::raw;
use crate::relay_process::RelayProcess;
use crate::shipping::{STREAM, Shipping, new_stream, wait_for};
use crate::table::Table;
use crate::unit::{Goal, Unit};

const KEYS: u64 = 1000;
const PATIENCE: Duration = Duration::from_secs(120);
const SETTLES: Duration = Duration::from_secs(2);
const IDLE: &str = "processor time";

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Footprint {
    /// Events.
    #[arg(default_value_t = 10_000)]
    events: u64,
    /// For how many seconds the idle relay is watched.
    #[arg(long, default_value_t = 60)]
    idle: u64,
}

impl Subject for Footprint {
    const NAME: &'static str = "footprint";

    fn quick() -> Self {
        Self { events: 300, idle: 1 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        let each = |bytes: u64| bytes as f64 / self.events as f64;
        let outbox = Outbox::create(&servers.postgres).await?;
        let (written, row) = self.write(&outbox).await?;
        let mut stream = new_stream(&servers.nats).await?;
        let relay = Shipping::start(&outbox, &servers.nats, SinkChoice::Auto)?;
        let shipped = logged(outbox.pool(), wait_for(&mut stream, self.events)).await?;
        let stored = stream.info().await?.state.bytes;
        relay.stop().await?;
        outbox.remove().await?;
        let (handled, inbox_row) = self.handle(servers).await?;
        let table = Table::of(
            "Bytes of an event with 256 bytes of payload",
            Unit::Bytes,
            [
                ("outbox row", vec![each(row)]),
                ("log: outbox", vec![each(written)]),
                ("log: shipping", vec![each(shipped)]),
                ("in the stream", vec![each(stored)]),
                ("inbox row", vec![each(inbox_row)]),
                ("log: inbox", vec![each(handled)]),
            ],
        );
        table.print();
        let idle = self.idle(servers).await?;
        Ok(Findings { tables: vec![table, idle], plot: Plot::Bars })
    }
}

impl Footprint {
    /// Commits the events. Returns how many bytes they added to the log, and to the outbox with its index.
    async fn write(&self, outbox: &Outbox) -> Result<(u64, u64)> {
        let pool = outbox.pool();
        let orders = "create table orders (id bigint primary key, cents bigint not null)";
        sqlx::raw_sql(orders).execute(pool).await?;
        let bare = logged(pool, self.place(pool, 0, false)).await?;
        let with_event = logged(pool, self.place(pool, self.events, true)).await?;
        Ok((with_event.saturating_sub(bare), size(pool, "pillarbox.outbox").await?))
    }

    /// Runs a business transaction for each event, with or without the event.
    async fn place(&self, pool: &PgPool, first: u64, with_event: bool) -> Result<()> {
        for order in first..first + self.events {
            let mut tx = pool.begin().await?;
            sqlx::query("insert into orders (id, cents) values ($1, 1995)")
                .bind(i64::try_from(order)?)
                .execute(&mut *tx)
                .await?;
            if with_event {
                let event = RawEvent::builder(EVENT_TYPE, SUBJECT)
                    .key((order % KEYS).to_string())
                    .payload(vec![b'x'; usize::try_from(PAYLOAD_BYTES)?])
                    .build()?;
                pillarbox::outbox::publish(&mut tx, event).await?;
            }
            tx.commit().await?;
        }
        Ok(())
    }

    /// Watches a relay that has nothing to do.
    async fn idle(&self, servers: &Servers) -> Result<Table> {
        let outbox = Outbox::create(&servers.postgres).await?;
        let mut stream = new_stream(&servers.nats).await?;
        let relay = RelayProcess::start(&outbox, &servers.nats)?;
        outbox.fill(1, None).await?;
        wait_for(&mut stream, 1).await?;
        // It looks often for a moment after an event.
        sleep(SETTLES).await;
        let (before, begin) = (relay.processor_time(), Instant::now());
        sleep(Duration::from_secs(self.idle)).await;
        let taken = relay.processor_time().saturating_sub(before);
        let share = 100.0 * taken.as_secs_f64() / begin.elapsed().as_secs_f64();
        relay.stop().await?;
        outbox.remove().await?;
        let mut table =
            Table::of("A relay with nothing to do", Unit::PercentOfCore, [(IDLE, vec![share])]);
        table.print();
        table.hold(IDLE, Goal::AtMost(0.5))?;
        Ok(table)
    }

    /// Handles the events in the stream. Returns how many bytes the inbox added to the log, and to its table with the
    /// index.
    async fn handle(&self, servers: &Servers) -> Result<(u64, u64)> {
        let database = Outbox::create(&servers.postgres).await?;
        let pool = database.pool();
        pillarbox::inbox::migrate(pool).await?;
        sqlx::raw_sql(EFFECTS).execute(pool).await?;
        let bare = logged(pool, async {
            for number in 0..self.events {
                let mut tx = pool.begin().await?;
                effect(&mut tx, &raw::event(number, KEYS)?).await?;
                tx.commit().await?;
            }
            Ok(())
        })
        .await?;
        let config = ConsumerConfig::new(STREAM, "footprint");
        let consumer = Consumer::with_config(servers.nats.connect().await?, pool.clone(), config)?;
        let shutdown = CancellationToken::new();
        let router = Router::new().on(record);
        let running = tokio::spawn(consumer.router(router).run(shutdown.clone()));
        let handled = logged(pool, async {
            let begin = Instant::now();
            while number(pool, "select count(*) from pillarbox.inbox").await? < self.events {
                ensure!(begin.elapsed() < PATIENCE, "the consumer makes no progress");
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        })
        .await?;
        shutdown.cancel();
        running.await??;
        let row = size(pool, "pillarbox.inbox").await?;
        database.remove().await?;
        Ok((handled.saturating_sub(bare), row))
    }
}

/// By how many bytes the write-ahead log grows while a future runs.
async fn logged(pool: &PgPool, work: impl Future<Output = Result<()>>) -> Result<u64> {
    sqlx::raw_sql("checkpoint").execute(pool).await?;
    let position = "select (pg_current_wal_insert_lsn() - '0/0')::bigint";
    let before = number(pool, position).await?;
    work.await?;
    Ok(number(pool, position).await? - before)
}

/// The size of a table with its indexes, in bytes.
async fn size(pool: &PgPool, table: &'static str) -> Result<u64> {
    let size: i64 = sqlx::query_scalar("select pg_total_relation_size($1::text::regclass)")
        .bind(table)
        .fetch_one(pool)
        .await?;
    Ok(u64::try_from(size)?)
}

async fn number(pool: &PgPool, question: &'static str) -> Result<u64> {
    let number: i64 = sqlx::query_scalar(question).fetch_one(pool).await?;
    Ok(u64::try_from(number)?)
}
