//! How fast a trail records what a stream holds, and what a trail that reads along costs the relay's drain.
//!
//! The trail's time begins with its start, and ends when the last message is recorded. Its tables are in a database of
//! their own, on the Postgres of the outbox.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use pillarbox_relay::SinkChoice;
use pillarbox_testkit::{Nats, Servers};
use pillarbox_trail::{Trail, TrailConfig};
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backlog::Outbox;
use crate::plot::Plot;
use crate::program::{Findings, Subject};
use crate::raw;
use crate::shipping::{STREAM, drain, new_stream};
use crate::table::Table;
use crate::unit::{Goal, Unit, count};

const KEYS: u64 = 1000;
const WAYS: [&str; 3] = ["trail", "relay", "relay beside a trail"];
/// If the trail has not recorded everything after this time, something is stuck.
const PATIENCE: Duration = Duration::from_secs(120);

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct TrailRate {
    /// Events in each round.
    #[arg(default_value_t = 200_000)]
    events: u64,
    /// Rounds that count.
    #[arg(default_value_t = 5)]
    rounds: usize,
}

impl Subject for TrailRate {
    const NAME: &'static str = "trail_rate";

    fn quick() -> Self {
        Self { events: 2_000, rounds: 0 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        let (postgres, nats, events) = (&servers.postgres, &servers.nats, self.events);
        let title = format!("A trail over {} events of 256 bytes", count(events));
        let measure = async |way: usize, _| {
            let mut stream = new_stream(nats).await?;
            // Neither an outbox nor its relay has to do with these tables; only its database is used.
            let tables = Outbox::create(postgres).await?;
            pillarbox_trail::migrate(tables.pool()).await?;
            let rate = if WAYS[way] == "trail" {
                raw::fast_ingest(nats, events, KEYS).await?;
                let begin = Instant::now();
                let trail = Reading::start(&tables, nats)?;
                trail.recorded(&tables, events).await?;
                let rate = events as f64 / begin.elapsed().as_secs_f64();
                trail.stop().await?;
                rate
            } else {
                let outbox = Outbox::with_backlog(postgres, events, Some(KEYS)).await?;
                let beside = WAYS[way] == "relay beside a trail";
                let trail = beside.then(|| Reading::start(&tables, nats)).transpose()?;
                let rate = drain(nats, &outbox, &mut stream, events, SinkChoice::Auto).await?;
                if let Some(trail) = trail {
                    trail.recorded(&tables, events).await?;
                    trail.stop().await?;
                }
                outbox.remove().await?;
                rate
            };
            tables.remove().await?;
            Ok(rate)
        };
        let mut table =
            Table::measure(&title, Unit::PerSecond, &WAYS, self.rounds, measure).await?;
        table.hold("trail", Goal::AtLeast(20_000.0))?;
        table.ratio("relay beside a trail", "relay", None)?;
        Ok(Findings { tables: vec![table], plot: Plot::Bars })
    }
}

/// A trail that runs in this process.
struct Reading {
    trail: JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Reading {
    fn start(tables: &Outbox, nats: &Nats) -> Result<Self> {
        let config = TrailConfig {
            database_url: tables.url().to_owned(),
            nats_url: nats.url(),
            streams: vec![STREAM.to_owned()],
            ..TrailConfig::default()
        };
        let shutdown = CancellationToken::new();
        let trail = tokio::spawn(Trail::new(config)?.run(shutdown.clone()));
        Ok(Self { trail, shutdown })
    }

    /// Waits until it has recorded the stream up to this sequence.
    async fn recorded(&self, tables: &Outbox, last: u64) -> Result<()> {
        let begin = Instant::now();
        let read = "select coalesce(max(sequence), 0)::bigint from pillarbox.trail_stream";
        loop {
            let sequence: i64 = sqlx::query_scalar(read).fetch_one(tables.pool()).await?;
            if u64::try_from(sequence)? >= last {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "the trail has recorded {sequence} of {last} messages"
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        Ok(self.trail.await?)
    }
}
