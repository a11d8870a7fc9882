//! Compares Pillarbox with other outboxes, on the same Postgres, nats-server and events.
//!
//! `cargo run --release --manifest-path benches/beside/Cargo.toml` measures all contestants three times, in turn, and
//! prints the tables of `docs/comparison.md`. `--help` lists the options. The program starts both servers itself, with
//! their default durability.
//!
//! | module | concept |
//! |---|---|
//! | `contestant`, `contestants` | the outboxes and readers |
//! | `publisher` | a hand-written publisher |
//! | `condition` | what else happens in the database |
//! | `measures` | what is measured |
//! | `rounds` | rounds in which the contestants take turns |
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
mod rounds;
mod site;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use pillarbox_benches::machine::{Machine, Versions};
use pillarbox_testkit::{Nats, Postgres, Servers};

use crate::condition::Condition;
use crate::measures::Measure;
use crate::results::{Line, Surroundings};
use crate::rounds::Run;

/// Compares Pillarbox with other outboxes.
#[derive(Parser)]
struct Arguments {
    /// How often each contestant has a turn.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Events in a backlog, a multiple of 1000.
    #[arg(long, default_value_t = 200_000)]
    events: i64,
    /// Seconds after which the drain of a backlog ends in any case.
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
    /// Keep the existing results, and add rounds to them.
    #[arg(long)]
    append: bool,
    /// Measure nothing, and print the tables of the existing results.
    #[arg(long)]
    tables: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.tables {
        if !arguments.append && arguments.out.exists() {
            std::fs::remove_file(&arguments.out)?;
        }
        let servers = Servers {
            // A run is shorter than the pause between two runs of autovacuum, so chance would decide whom it hits.
            postgres: Postgres::options().durable().setting("autovacuum", "off").start().await?,
            nats: Nats::start().await?,
        };
        println!("{} and {}", servers.postgres.version(), servers.nats.version());
        let surroundings =
            Surroundings { machine: Machine::this(), versions: Versions::of(&servers) };
        results::write(&arguments.out, &Line::Surroundings(Box::new(surroundings)))?;
        Run { arguments: &arguments, servers }.rounds().await?;
    }
    results::print_tables(&results::read(&arguments.out)?);
    Ok(())
}
