//! Whether a large backlog slows a relay down, or fills its memory.
//!
//! The relay runs as a process of its own. The backlog is cut into fifths; of 5,000,000 events, each is a million.

use std::env;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::stream::Stream;
use clap::Args;
use pillarbox_testkit::Servers;
use serde::Serialize;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::backlog::Outbox;
use crate::machine::memory_of;
use crate::plot::{Line, Plot};
use crate::program::{Findings, Subject};
use crate::shipping::new_stream;
use crate::table::Table;
use crate::unit::{Goal, Unit, count};

const PIECES: u64 = 5;
const COLUMNS: [&str; 5] = ["1st fifth", "2nd", "3rd", "4th", "last fifth"];
const LOOK: Duration = Duration::from_millis(10);
/// The points of a line in the plot.
const POINTS: u64 = 100;
const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct RelayBacklog {
    /// Events of the backlog. 5000000 is the run that the goal speaks of; it takes 10 GB of disk.
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
        let mut pieces = vec![Vec::new(); PIECES as usize];
        let mut memory = Vec::new();
        let mut lines = Vec::new();
        println!("\n{} events; events per second, and peak memory in MiB", self.events);
        for round in 0..self.rounds {
            let run = self.run(servers).await?;
            let rates: Vec<f64> =
                (0..PIECES).map(|piece| run.rate(self.events, piece, PIECES)).collect();
            println!(
                "{:>8}  {}  {:.0}",
                round + 1,
                rates.iter().map(|rate| format!("{rate:>9.0}")).collect::<Vec<_>>().join("  "),
                run.peak
            );
            for (piece, rate) in pieces.iter_mut().zip(rates) {
                piece.push(rate);
            }
            memory.push(run.peak);
            lines = run.lines(self.events);
        }
        let title = format!("Draining {} events, by fifths", count(self.events));
        let mut rates = Table::of(&title, Unit::PerSecond, COLUMNS.into_iter().zip(pieces));
        rates.print();
        rates.ratio("last fifth", "1st fifth", Some(Goal::AtLeast(0.95)))?;
        let mut peaks =
            Table::of("The relay's memory", Unit::Mebibytes, [("peak resident set", memory)]);
        peaks.print();
        peaks.hold("peak resident set", Goal::AtMost(100.0))?;
        Ok(Findings { tables: vec![rates, peaks], plot: Plot::Lines(lines) })
    }
}

/// What was seen of a relay at work.
struct Run {
    /// The time since the first message, in seconds, and the messages in the stream and the relay's memory then.
    seen: Vec<(f64, u64, f64)>,
    /// The most memory that it had, in MiB.
    peak: f64,
}

impl RelayBacklog {
    async fn run(&self, servers: &Servers) -> Result<Run> {
        let mut stream = new_stream(&servers.nats).await?;
        let outbox = Outbox::with_backlog(&servers.postgres, self.events, Some(1000)).await?;
        let program = env::current_exe()?;
        let folder = program.ancestors().nth(2).context("this program is in no target folder")?;
        let mut relay = Command::new(folder.join("relay_process"))
            .env("DATABASE_URL", outbox.url())
            .env("NATS_URL", servers.nats.url())
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting relay_process, which Cargo builds with the benchmarks")?;
        let run = self.watch(&relay, &mut stream).await?;
        drop(relay.stdin.take());
        ensure!(timeout(Duration::from_secs(20), relay.wait()).await??.success(), "it failed");
        let stored = stream.info().await?.state.messages;
        ensure!(stored == self.events, "{stored} messages are stored, of {} events", self.events);
        outbox.remove().await?;
        Ok(run)
    }

    async fn watch(&self, relay: &Child, stream: &mut Stream) -> Result<Run> {
        let pid = relay.id().context("the relay has ended")?;
        let resident = || memory_of(pid, "VmRSS").map_or(0.0, |bytes| bytes as f64 / MEBIBYTE);
        let (mut seen, mut begin) = (Vec::new(), None);
        let mut moved_at = Instant::now();
        loop {
            let messages = stream.info().await?.state.messages;
            let begin = match begin {
                None if messages == 0 => None,
                None => *begin.insert(Some(Instant::now())),
                Some(begin) => begin,
            };
            if let Some(begin) = begin
                && seen.last().is_none_or(|(_, last, _)| *last < messages)
            {
                moved_at = Instant::now();
                seen.push((begin.elapsed().as_secs_f64(), messages, resident()));
            }
            if messages >= self.events {
                let peak = memory_of(pid, "VmHWM").map_or(0.0, |bytes| bytes as f64 / MEBIBYTE);
                return Ok(Run { seen, peak });
            }
            ensure!(moved_at.elapsed() < Duration::from_secs(60), "stuck at {messages} messages");
            sleep(LOOK).await;
        }
    }
}

impl Run {
    /// The rate over one of so many equal pieces. The first begins with the first message that was seen, so that
    /// starting does not count.
    fn rate(&self, events: u64, piece: u64, pieces: u64) -> f64 {
        let (from, to) = (events * piece / pieces, events * (piece + 1) / pieces);
        let at = |messages: u64| {
            let later = self.seen.iter().position(|(_, seen, _)| *seen >= messages);
            let later = later.unwrap_or(self.seen.len() - 1);
            let (time, seen, _) = self.seen[later];
            match later.checked_sub(1).map(|before| self.seen[before]) {
                // As if the relay had been even between two looks.
                Some((time_before, before, _)) => {
                    let share = (messages - before) as f64 / (seen - before) as f64;
                    (time_before + share * (time - time_before), messages)
                }
                None => (time, seen),
            }
        };
        let ((begin, first), (end, last)) = (at(from), at(to));
        (last - first) as f64 / (end - begin)
    }

    /// The rate and the memory over the backlog.
    fn lines(&self, events: u64) -> Vec<Line> {
        let points = POINTS.min(self.seen.len() as u64 / 2).max(1);
        let middle = |piece: u64| events as f64 * (piece as f64 + 0.5) / points as f64;
        Vec::from([
            Line {
                title: "events per second".into(),
                points: (0..points)
                    .map(|piece| (middle(piece), self.rate(events, piece, points)))
                    .collect(),
            },
            Line {
                title: "resident memory of the relay, MiB".into(),
                points: self
                    .seen
                    .iter()
                    .map(|(_, messages, resident)| (*messages as f64, *resident))
                    .collect(),
            },
        ])
    }
}
