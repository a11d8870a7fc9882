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
//! | `rounds` | everybody in turn |
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

/// Measures Pillarbox beside other outboxes.
#[derive(Parser)]
struct Arguments {
    /// How often everybody has a turn.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Events in a backlog, a multiple of 1000.
    #[arg(long, default_value_t = 200_000)]
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
        let surroundings =
            Surroundings { machine: Machine::this(), versions: Versions::of(&servers) };
        results::write(&arguments.out, &Line::Surroundings(Box::new(surroundings)))?;
        Run { arguments: &arguments, servers }.rounds().await?;
    }
    results::print_tables(&results::read(&arguments.out)?);
    Ok(())
}
