//! What all programs do: arguments, servers, files.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Command, FromArgMatches};
use pillarbox_testkit::{Nats, Postgres, Servers};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::machine::{Machine, Versions, load_average};
use crate::plot::Plot;
use crate::report::Report;
use crate::summary;
use crate::table::Table;

/// What a program measures. The fields are the program's arguments.
pub trait Subject: Args + Serialize {
    /// The name of the program and of its files.
    const NAME: &'static str;

    /// The smallest run that still covers everything, in a second or two.
    fn quick() -> Self;

    /// Measures on these servers.
    fn measure(&self, servers: &Servers) -> impl Future<Output = Result<Findings>>;
}

/// What a subject found.
#[derive(Debug)]
pub struct Findings {
    /// The figures.
    pub tables: Vec<Table>,
    /// How to draw them.
    pub plot: Plot,
}

#[derive(Args)]
struct Common {
    /// Run everything with few events and one round, to see that it works. The figures mean nothing, and are written to
    /// a folder `quick`.
    #[arg(long)]
    quick: bool,
    /// Cargo passes this to benchmarks.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The main function of a program: starts the servers, measures, and writes `NAME.json`, `NAME.svg` and the summary
/// to `target/bench`.
///
/// # Errors
/// Any error that stops the program.
pub fn main<S: Subject>() -> Result<()> {
    let command = Common::augment_args(S::augment_args(Command::new(S::NAME)));
    let matches = command.get_matches();
    let common = Common::from_arg_matches(&matches)?;
    let subject = if common.quick { S::quick() } else { S::from_arg_matches(&matches)? };
    let folder = folder(common.quick)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let servers = durable_servers().await?;
        println!("\n# {}: {} and {}", S::NAME, servers.postgres.version(), servers.nats.version());
        let report = run(&subject, &servers, &folder).await?;
        println!("\nwritten to {}", folder.join(&report.program).with_extension("json").display());
        Ok(())
    })
}

/// Servers with their default durability.
async fn durable_servers() -> Result<Servers> {
    let (postgres, nats) = tokio::try_join!(Postgres::options().durable().start(), Nats::start())?;
    Ok(Servers { postgres, nats })
}

/// Measures, and writes the files.
///
/// # Errors
/// Any error that stops the program.
pub async fn run<S: Subject>(subject: &S, servers: &Servers, folder: &Path) -> Result<Report> {
    let (begin, load_before) = (Instant::now(), load_average());
    let began_at = OffsetDateTime::now_utc().format(&Rfc3339)?;
    let Findings { tables, plot } = subject.measure(servers).await?;
    let report = Report {
        program: S::NAME.to_owned(),
        arguments: serde_json::to_value(subject)?,
        began_at,
        seconds: begin.elapsed().as_secs_f64(),
        load_before,
        machine: Machine::this(),
        versions: Versions::of(servers),
        tables,
    };
    let file = folder.join(S::NAME);
    fs::write(file.with_extension("json"), serde_json::to_string_pretty(&report)? + "\n")?;
    fs::write(file.with_extension("svg"), plot.draw(&report.tables)?)?;
    summary::write(folder)?;
    Ok(report)
}

/// `target/bench`, wherever the target folder is.
fn folder(quick: bool) -> Result<PathBuf> {
    let program = env::current_exe()?;
    // target/release/deps/relay_drain-1a2b
    let target = program.ancestors().nth(3).context("this program is in no target folder")?;
    let folder = target.join("bench").join(if quick { "quick" } else { "" });
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
