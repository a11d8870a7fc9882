//! Pillarbox beside other outboxes: on the same Postgres, nats-server and events.
//!
//! `cargo run --release --manifest-path benches/beside/Cargo.toml` measures everybody three times, in turn, and
//! prints the tables of `docs/comparison.md`; `--help` says what else there is. Both servers are started by the
//! program, with their default durability.
//!
//! | module | concept |
//! |---|---|
//! | `contestant`, `contestants` | what is compared |
//! | `publisher` | publishing as one writes it by hand |
//! | `condition` | what else goes on in the database |
//! | `measures` | what is measured |
//! | `audit` | compares a stream with what was committed |
//! | `site`, `event` | the database, the stream and the events |
//! | `results` | JSON and tables |

mod audit;
mod condition;
mod contestant;
mod contestants;
mod event;
mod measures;
mod publisher;
mod results;
mod site;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use pillarbox_testkit::{Nats, Postgres, Servers};
use sqlx::PgPool;

use crate::condition::Condition;
use crate::contestant::{Contestant, contestants};
use crate::measures::{Values, drain, latency, live, writers};
use crate::results::Record;
use crate::site::Site;

/// Measures Pillarbox beside other outboxes.
#[derive(Parser)]
struct Arguments {
    /// How often everybody has a turn.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Events in a backlog, a multiple of 1000.
    #[arg(long, default_value_t = 100_000)]
    events: i64,
    /// Seconds after which a backlog is left as it is.
    #[arg(long, default_value_t = 6)]
    limit: u64,
    /// Events of churn, a multiple of 1000.
    #[arg(long, default_value_t = 1_000_000)]
    churn: i64,
    /// Events a second, for the latency.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds for which latency and writers are measured.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Only contestants whose name contains this; may be given several times.
    #[arg(long)]
    only: Vec<String>,
    /// Only under these conditions.
    #[arg(long, value_enum)]
    condition: Vec<Condition>,
    /// Only these measures.
    #[arg(long, value_enum)]
    measure: Vec<Measure>,
    /// Where the results are written.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/results/latest.jsonl"))]
    out: PathBuf,
    /// Keep the results that are there, and add rounds to them.
    #[arg(long)]
    append: bool,
    /// Measure nothing: print the tables of the results that are there.
    #[arg(long)]
    tables: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// How fast a backlog drains.
    Drain,
    /// Order and losses while others write.
    Live,
    /// Time to the stream and to a consumer.
    Latency,
    /// What writing an event costs.
    Writers,
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Live => "live",
            Self::Latency => "latency",
            Self::Writers => "writers",
        }
    }

    /// Whether it says something under this condition.
    fn applies(self, condition: Condition) -> bool {
        matches!(self, Self::Drain | Self::Latency) || condition == Condition::Idle
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.tables {
        if !arguments.append && arguments.out.exists() {
            std::fs::remove_file(&arguments.out)?;
        }
        let servers = Servers {
            // A run is shorter than autovacuum's nap: whom it meets would be chance.
            postgres: Postgres::options().durable().setting("autovacuum", "off").start().await?,
            nats: Nats::start().await?,
        };
        println!("{} and {}", servers.postgres.version(), servers.nats.version());
        Run { arguments: &arguments, servers }.rounds().await?;
    }
    results::print_tables(&results::read(&arguments.out)?);
    Ok(())
}

struct Run<'a> {
    arguments: &'a Arguments,
    servers: Servers,
}

impl Run<'_> {
    async fn rounds(&self) -> Result<()> {
        let arguments = self.arguments;
        let mut present = Vec::new();
        let postgres = PgPool::connect(&self.servers.postgres.url("postgres")).await?;
        for contestant in contestants() {
            let name = contestant.name();
            if !arguments.only.is_empty() && !arguments.only.iter().any(|only| name.contains(only))
            {
                continue;
            }
            match contestant.missing(&postgres).await? {
                Some(reason) => println!("left out: {name}: {reason}"),
                None => present.push(contestant),
            }
        }
        let done = results::read(&arguments.out)?;
        let done = done.iter().map(|record| record.round).max().unwrap_or(0);
        for round in done + 1..=done + arguments.rounds {
            for condition in [Condition::Idle, Condition::Open, Condition::Churn] {
                if arguments.condition.is_empty() || arguments.condition.contains(&condition) {
                    // Somebody else is first in each round.
                    let turn = usize::try_from(round)? * 3 % present.len().max(1);
                    present.rotate_left(turn);
                    self.condition(round, condition, &present).await?;
                    present.rotate_right(turn);
                }
            }
        }
        Ok(())
    }

    /// A round under one condition. Churn takes long to bring about, so contestants of the same outbox share it.
    async fn condition(
        &self,
        round: u32,
        condition: Condition,
        present: &[Box<dyn Contestant>],
    ) -> Result<()> {
        let mut outboxes: Vec<Vec<&dyn Contestant>> = Vec::new();
        for contestant in present {
            match outboxes.iter_mut().find(|group| group[0].outbox() == contestant.outbox()) {
                Some(group) => group.push(&**contestant),
                None => outboxes.push(vec![&**contestant]),
            }
        }
        for group in outboxes {
            let mut shared = None;
            for (place, contestant) in group.into_iter().enumerate() {
                for measure in Measure::value_variants() {
                    let wanted = self.arguments.measure.is_empty()
                        || self.arguments.measure.contains(measure);
                    // Writers do not depend on who ships.
                    let once = *measure == Measure::Writers && place > 0;
                    let possible = contestant.ships() || *measure == Measure::Writers;
                    if !wanted || once || !possible || !measure.applies(condition) {
                        continue;
                    }
                    let (mut site, open) = match shared.take() {
                        Some(shared) => shared,
                        None => {
                            let mut site = Site::open(&self.servers, contestant).await?;
                            let churn = self.arguments.churn;
                            let open = condition.bring_about(contestant, &site, churn).await;
                            let open = open.with_context(|| contestant.name())?;
                            site.new_stream().await?;
                            (site, open)
                        }
                    };
                    let values = self.measure(*measure, contestant, &site).await;
                    let values = values
                        .with_context(|| format!("{}, {}", contestant.name(), measure.name()))?;
                    self.record(round, contestant, condition, *measure, values)?;
                    if condition == Condition::Churn {
                        contestant.pass(&site).await?;
                        site.new_stream().await?;
                        shared = Some((site, open));
                    } else {
                        drop(open);
                        site.close().await?;
                    }
                }
            }
            if let Some((site, open)) = shared {
                drop(open);
                site.close().await?;
            }
        }
        Ok(())
    }

    async fn measure(
        &self,
        measure: Measure,
        contestant: &dyn Contestant,
        site: &Site,
    ) -> Result<Values> {
        let Arguments { events, limit, rate, seconds, .. } = self.arguments;
        let duration = Duration::from_secs(*seconds);
        match measure {
            Measure::Drain => {
                drain::measure(contestant, site, *events, Duration::from_secs(*limit)).await
            }
            Measure::Live => live::measure(contestant, site, duration).await,
            Measure::Latency => latency::measure(contestant, site, *rate, duration).await,
            Measure::Writers => writers::measure(contestant, site, duration).await,
        }
    }

    fn record(
        &self,
        round: u32,
        contestant: &dyn Contestant,
        condition: Condition,
        measure: Measure,
        values: Values,
    ) -> Result<()> {
        let shown: Vec<String> =
            values.iter().map(|(name, value)| format!("{name} {value:.1}")).collect();
        println!(
            "round {round}, {}, {}, {}: {}",
            condition.name(),
            contestant.name(),
            measure.name(),
            shown.join(", ")
        );
        let record = Record {
            round,
            contestant: contestant.name(),
            condition: condition.name().to_owned(),
            measure: measure.name().to_owned(),
            values,
        };
        results::write(&self.arguments.out, &record)
    }
}
