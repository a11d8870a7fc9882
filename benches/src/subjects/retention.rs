//! What removing a million shipped rows costs the writers of an outbox. They should not notice it.
//!
//! The writers commit one event at a time, with a pause of 5 ms in between, while the relay ships: first with nothing
//! to remove, then while the rows are removed, and then with nothing to remove again. All the time the program checks
//! whether a writer waits for a lock.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use pillarbox_relay::RelayConfig;
use pillarbox_testkit::{Nats, Servers};
use serde::Serialize;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backlog::Outbox;
use crate::plot::{Curve, Plot};
use crate::program::{Findings, Subject};
use crate::shipping::{Shipping, config, new_stream};
use crate::statistics::{percentile, sorted};
use crate::table::Table;
use crate::unit::{Unit, count};

const PAUSE: Duration = Duration::from_millis(5);
/// Longer than the age of the rows, so nothing is removed.
const LONG: Duration = Duration::from_secs(86_400);
const PHASES: [&str; 3] = ["nothing to remove", "while removing", "afterwards"];
const SHARES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Retention {
    /// Shipped rows that are removed.
    #[arg(default_value_t = 1_000_000)]
    rows: u64,
    /// Writers.
    #[arg(default_value_t = 4)]
    writers: u64,
    /// How long the writers are measured with nothing to remove, in seconds.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

impl Subject for Retention {
    const NAME: &'static str = "retention";

    fn quick() -> Self {
        Self { rows: 5_000, writers: 2, seconds: 1 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        let quiet = async || {
            sleep(Duration::from_secs(self.seconds)).await;
            Ok(())
        };
        new_stream(&servers.nats).await?;
        let outbox = Outbox::with_backlog(&servers.postgres, self.rows, Some(1000)).await?;

        let relay = start(&outbox, &servers.nats, LONG)?;
        let shipped = "select count(*) = 0 from pillarbox.outbox, pillarbox.relay \
                       where position > (cursor ->> 'high')::bigint";
        wait_until(&outbox, shipped).await?;
        println!("\n{} rows shipped; {} writers", count(self.rows), self.writers);
        let before = self.writing(&outbox, &quiet).await?;
        relay.stop().await?;

        let relay = start(&outbox, &servers.nats, Duration::from_secs(1))?;
        let begin = Instant::now();
        // Counted by position, so that the writers' rows do not matter.
        let rows = self.rows;
        let gone =
            format!("select not exists (select from pillarbox.outbox where position <= {rows})");
        let during = self.writing(&outbox, async || wait_until(&outbox, &gone).await).await?;
        let seconds = begin.elapsed().as_secs_f64();
        relay.stop().await?;

        let relay = start(&outbox, &servers.nats, LONG)?;
        let after = self.writing(&outbox, quiet).await?;
        relay.stop().await?;
        outbox.remove().await?;

        for (name, phase) in PHASES.iter().zip([&before, &during, &after]) {
            let Written { latencies, waits, looks } = phase;
            println!(
                "{name}: {} transactions, {waits} of {looks} looks saw a writer wait",
                latencies.len()
            );
        }
        let phases = [before, during, after].map(|phase| phase.latencies);
        let mut tables = Vec::new();
        for (name, share) in SHARES {
            let title = format!("Writers' transactions, {name}");
            let figures = phases.iter().map(|latencies| vec![percentile(latencies, share)]);
            let mut table = Table::of(&title, Unit::Milliseconds, PHASES.into_iter().zip(figures));
            table.print();
            table.difference("while removing", "nothing to remove", None)?;
            tables.push(table);
        }
        let rate = vec![self.rows as f64 / seconds];
        let removed = Table::of("Removing rows", Unit::PerSecond, [("rows removed", rate)]);
        removed.print();
        tables.push(removed);
        let curves = PHASES.into_iter().zip(phases);
        let curves = curves.map(|(name, sorted)| Curve { name: name.to_owned(), sorted });
        Ok(Findings { tables, plot: Plot::Percentiles(curves.collect()) })
    }
}

fn start(outbox: &Outbox, nats: &Nats, retention: Duration) -> Result<Shipping> {
    Shipping::start_with(RelayConfig { retention, ..config(outbox, nats) })
}

async fn wait_until(outbox: &Outbox, condition: &str) -> Result<()> {
    let begin = Instant::now();
    loop {
        let sql = sqlx::AssertSqlSafe(condition.to_owned());
        if sqlx::query_scalar::<_, bool>(sql).fetch_one(outbox.pool()).await? {
            return Ok(());
        }
        ensure!(begin.elapsed() < Duration::from_secs(600), "no progress: {condition}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// What the writers saw in one phase.
struct Written {
    /// In milliseconds, in ascending order.
    latencies: Vec<f64>,
    /// How often a writer was seen to wait for a lock of rows, tables or transactions.
    waits: i64,
    /// How often the program looked.
    looks: u64,
}

impl Retention {
    /// Lets the writers work until `until` has ended.
    async fn writing(
        &self,
        outbox: &Outbox,
        until: impl AsyncFnOnce() -> Result<()>,
    ) -> Result<Written> {
        let end = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for writer in 0..self.writers {
            tasks.spawn(write(outbox.url().to_owned(), writer, end.clone()));
        }
        let watching = tokio::spawn(watch(outbox.url().to_owned(), end.clone()));
        until().await?;
        end.cancel();
        let mut latencies = Vec::new();
        for writer in tasks.join_all().await {
            latencies.append(&mut writer?);
        }
        let (waits, looks) = watching.await??;
        Ok(Written { latencies: sorted(&latencies), waits, looks })
    }
}

/// Commits one event per transaction, and measures from `begin` to the answer to `commit`.
async fn write(url: String, writer: u64, end: CancellationToken) -> Result<Vec<f64>> {
    let mut connection = PgConnection::connect(&url).await?;
    sqlx::raw_sql("set application_name = 'writer'").execute(&mut connection).await?;
    let mut latencies = Vec::new();
    while !end.is_cancelled() {
        let begin = Instant::now();
        let mut tx = connection.begin().await?;
        pillarbox::outbox::publish(&mut tx, crate::raw::event(writer, 1000)?).await?;
        tx.commit().await?;
        latencies.push(begin.elapsed().as_secs_f64() * 1e3);
        sleep(PAUSE).await;
    }
    Ok(latencies)
}

async fn watch(url: String, end: CancellationToken) -> Result<(i64, u64)> {
    let mut connection = PgConnection::connect(&url).await?;
    let (mut waits, mut looks) = (0, 0);
    while !end.is_cancelled() {
        waits += sqlx::query_scalar::<_, i64>(
            "select count(*) from pg_stat_activity \
             where application_name = 'writer' and wait_event_type = 'Lock'",
        )
        .fetch_one(&mut connection)
        .await?;
        looks += 1;
        sleep(Duration::from_millis(10)).await;
    }
    Ok((waits, looks))
}
