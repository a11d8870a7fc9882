//! What keys cost: one key, few keys, many keys or none, with fast ingest and with the keyed window.
//!
//! A keyed window awaits the acknowledgement of a key's last event before it sends the next one, so each event of a
//! single key takes a round trip. A fast-ingest batch keeps all of them in order at once.

use anyhow::Result;
use clap::Args;
use pillarbox_relay::SinkChoice;
use pillarbox_testkit::Servers;
use serde::Serialize;

use crate::backlog::Outbox;
use crate::plot::Plot;
use crate::program::{Findings, Subject};
use crate::shipping::{drain, new_stream};
use crate::table::Table;
use crate::unit::{Unit, count};

const KEYS: [(&str, Option<u64>); 5] = [
    ("1,000 keys", Some(1000)),
    ("100,000 keys", Some(100_000)),
    ("no keys", None),
    ("10 keys", Some(10)),
    ("1 key", Some(1)),
];

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct RelayKeys {
    /// Events in each round.
    #[arg(default_value_t = 100_000)]
    events: u64,
    /// Rounds that count.
    #[arg(default_value_t = 3)]
    rounds: usize,
}

impl Subject for RelayKeys {
    const NAME: &'static str = "relay_keys";

    fn quick() -> Self {
        Self { events: 1_000, rounds: 0 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        let mut tables = Vec::new();
        for (name, sink) in
            [("fast ingest", SinkChoice::Auto), ("keyed window", SinkChoice::KeyedWindow)]
        {
            let title = format!("Draining {} events, {name}", count(self.events));
            let ways = KEYS.map(|(name, _)| name);
            let mut table =
                Table::measure(&title, Unit::PerSecond, &ways, self.rounds, async |way, _| {
                    let (postgres, nats) = (&servers.postgres, &servers.nats);
                    let mut stream = new_stream(nats).await?;
                    let outbox = Outbox::with_backlog(postgres, self.events, KEYS[way].1).await?;
                    let rate = drain(nats, &outbox, &mut stream, self.events, sink).await;
                    outbox.remove().await?;
                    rate
                })
                .await?;
            for few in ["10 keys", "1 key"] {
                table.ratio(few, "1,000 keys", None)?;
            }
            tables.push(table);
        }
        Ok(Findings { tables, plot: Plot::Bars })
    }
}
