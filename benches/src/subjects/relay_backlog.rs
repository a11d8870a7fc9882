//! Whether a large backlog slows a relay down, or fills its memory.
//!
//! The relay runs as a process of its own. The backlog is divided into fifths; of 5,000,000 events, each fifth is a
//! million. For comparison, the same number of messages is published without a database, because a growing stream has a
//! cost of its own.

use anyhow::{Result, ensure};
use clap::Args;
use pillarbox_testkit::Servers;
use serde::Serialize;

use crate::backlog::Outbox;
use crate::plot::{Line, Plot};
use crate::program::{Findings, Subject};
use crate::progress::Progress;
use crate::raw;
use crate::relay_process::RelayProcess;
use crate::shipping::new_stream;
use crate::table::Table;
use crate::unit::{Goal, Unit, count};

const PIECES: u64 = 5;
const COLUMNS: [&str; 5] = ["1st fifth", "2nd", "3rd", "4th", "last fifth"];
const PEAK: &str = "peak resident set";
const KEYS: u64 = 1000;
/// The points of a line in the plot.
const POINTS: u64 = 100;
const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct RelayBacklog {
    /// Events of the backlog. The goal is for 5000000, which needs 10 GB of disk.
    #[arg(default_value_t = 1_000_000)]
    events: u64,
    /// Rounds, all of which count.
    #[arg(default_value_t = 3)]
    rounds: usize,
}

impl Subject for RelayBacklog {
    const NAME: &'static str = "relay_backlog";

    fn quick() -> Self {
        Self { events: 5_000, rounds: 1 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        let (mut relay, mut raw) = (Fifths::new(), Fifths::new());
        let (mut memory, mut lines) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            println!("round {} of {}", round + 1, self.rounds);
            let (shipped, peak) = self.ship(servers).await?;
            relay.push(shipped.rates(self.events, PIECES));
            memory.push(peak);
            let published = self.publish(servers).await?;
            raw.push(published.rates(self.events, PIECES));
            lines = self.lines(&shipped, &published);
        }
        let title = |what: &str| format!("{what} {} events, by fifths", count(self.events));
        let mut shipping = relay.table(&title("Draining"));
        shipping.ratio(COLUMNS[4], COLUMNS[0], Some(Goal::AtLeast(0.95)))?;
        let mut publishing = raw.table(&title("Raw fast ingest of"));
        publishing.ratio(COLUMNS[4], COLUMNS[0], None)?;
        let mut peaks = Table::of("The relay's memory", Unit::Mebibytes, [(PEAK, memory)]);
        peaks.print();
        peaks.hold(PEAK, Goal::AtMost(100.0))?;
        Ok(Findings { tables: vec![shipping, publishing, peaks], plot: Plot::Lines(lines) })
    }
}

/// Rates of all rounds, by fifths.
struct Fifths(Vec<Vec<f64>>);

impl Fifths {
    fn new() -> Self {
        Self(vec![Vec::new(); COLUMNS.len()])
    }

    fn push(&mut self, rates: Vec<f64>) {
        for (all, rate) in self.0.iter_mut().zip(rates) {
            all.push(rate);
        }
    }

    fn table(self, title: &str) -> Table {
        let table = Table::of(title, Unit::PerSecond, COLUMNS.into_iter().zip(self.0));
        table.print();
        table
    }
}

impl RelayBacklog {
    /// Lets the relay drain the backlog. Returns its progress, and the relay's peak memory.
    async fn ship(&self, servers: &Servers) -> Result<(Progress, f64)> {
        let mut stream = new_stream(&servers.nats).await?;
        let outbox = Outbox::with_backlog(&servers.postgres, self.events, Some(KEYS)).await?;
        let relay = RelayProcess::start(&outbox, &servers.nats)?;
        let memory = |field| relay.memory(field) as f64 / MEBIBYTE;
        let progress = Progress::watch(&mut stream, self.events, || memory("VmRSS")).await?;
        let peak = memory("VmHWM");
        relay.stop().await?;
        let stored = stream.info().await?.state.messages;
        ensure!(stored == self.events, "{stored} messages are stored, of {} events", self.events);
        outbox.remove().await?;
        Ok((progress, peak))
    }

    /// Publishes the same number of messages without a database.
    async fn publish(&self, servers: &Servers) -> Result<Progress> {
        let mut stream = new_stream(&servers.nats).await?;
        let publishing = raw::fast_ingest_made_on_the_way(&servers.nats, self.events, KEYS);
        let watching = Progress::watch(&mut stream, self.events, || 0.0);
        let ((), progress) = tokio::try_join!(publishing, watching)?;
        Ok(progress)
    }

    /// The rates and the memory over the backlog.
    fn lines(&self, shipped: &Progress, published: &Progress) -> Vec<Line> {
        let rates = |title: &str, progress: &Progress| {
            let points = POINTS.min(progress.looks().len() as u64 / 2).max(1);
            let middle = |piece: usize| self.events as f64 * (piece as f64 + 0.5) / points as f64;
            let rates = progress.rates(self.events, points).into_iter().enumerate();
            Line {
                title: title.to_owned(),
                points: rates.map(|(piece, rate)| (middle(piece), rate)).collect(),
            }
        };
        let memory = shipped.looks().iter().map(|look| (look.messages as f64, look.memory));
        vec![
            rates("the relay, events per second", shipped),
            rates("raw fast ingest of as many messages, per second", published),
            Line {
                title: "resident memory of the relay, MiB".to_owned(),
                points: memory.collect(),
            },
        ]
    }
}
