//! How fast a relay drains a backlog, compared with publishing the same messages without a database.

use anyhow::Result;
use clap::Args;
use pillarbox_relay::SinkChoice;
use pillarbox_testkit::{Nats, Postgres, Servers};
use serde::Serialize;

use crate::backlog::Outbox;
use crate::plot::Plot;
use crate::program::{Findings, Subject};
use crate::raw;
use crate::shipping::{context, drain, new_stream};
use crate::table::Table;
use crate::unit::{Goal, Unit, count};

const KEYS: u64 = 1000;
const WAYS: [&str; 4] = ["raw plain", "raw fast ingest", "relay", "relay, keyed window"];

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct RelayDrain {
    /// Events in each round.
    #[arg(default_value_t = 300_000)]
    events: u64,
    /// Rounds that count.
    #[arg(default_value_t = 5)]
    rounds: usize,
    /// Events in each round with a broker that syncs every message to disk; 0 leaves these rounds out.
    #[arg(long, default_value_t = 10_000)]
    synced_events: u64,
}

impl Subject for RelayDrain {
    const NAME: &'static str = "relay_drain";

    fn quick() -> Self {
        Self { events: 2_000, rounds: 0, synced_events: 200 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        let title =
            format!("Draining {} events of 256 bytes, default durability", count(self.events));
        let mut tables =
            vec![self.table(&title, &servers.postgres, &servers.nats, self.events).await?];
        tables[0].ratio("relay", "raw plain", Some(Goal::AtLeast(1.0)))?;
        tables[0].ratio("relay", "raw fast ingest", Some(Goal::AtLeast(0.85)))?;
        tables[0].ratio("relay, keyed window", "raw plain", None)?;
        if self.synced_events > 0 {
            let synced = Nats::options().sync_always().start().await?;
            let title =
                format!("Draining {} events, sync_interval: always", count(self.synced_events));
            let mut table =
                self.table(&title, &servers.postgres, &synced, self.synced_events).await?;
            table.ratio("relay", "raw plain", None)?;
            table.ratio("relay", "raw fast ingest", None)?;
            tables.push(table);
        }
        Ok(Findings { tables, plot: Plot::Bars })
    }
}

impl RelayDrain {
    async fn table(
        &self,
        title: &str,
        postgres: &Postgres,
        nats: &Nats,
        events: u64,
    ) -> Result<Table> {
        Table::measure(title, Unit::PerSecond, &WAYS, self.rounds, async |way, _| {
            let mut stream = new_stream(nats).await?;
            match way {
                0 => raw::plain(&context(nats).await?, events, KEYS).await,
                1 => raw::fast_ingest(nats, events, KEYS).await,
                _ => {
                    let sink = if way == 2 { SinkChoice::Auto } else { SinkChoice::KeyedWindow };
                    let outbox = Outbox::with_backlog(postgres, events, Some(KEYS)).await?;
                    let rate = drain(nats, &outbox, &mut stream, events, sink).await;
                    outbox.remove().await?;
                    rate
                }
            }
        })
        .await
    }
}
