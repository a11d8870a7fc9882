//! Makes faults and checks what Pillarbox promises.
//!
//! ```text
//! cargo run --release -p pillarbox-faults -- --seed 7 --seconds 60
//! cargo run --release -p pillarbox-faults -- --seed 7 --schedule-only
//! cargo run --release -p pillarbox-faults -- --faults kill-relay,cut-commit
//! ```
//!
//! The exit code is 1 if any promise is broken.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pillarbox_faults::{Options, role, run, schedule};

/// Runs writers, relays and consumers while faults are made, and then checks what came of every event.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// One of the processes of a run.
    #[command(hide = true)]
    Role {
        /// Its settings, as JSON.
        told: String,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "info,sqlx=error,async_nats=error".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let Cli { mut options, part } = Cli::parse();
    if let Some(Part::Role { told }) = part {
        role::play(&told).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let seed = *options.seed.get_or_insert_with(rand::random);
    if options.schedule_only {
        let mut out = format!("seed {seed}\n");
        for planned in schedule::schedule(&options, seed) {
            out.push_str(&format!("{planned}\n"));
        }
        print(&out)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!("seed {seed}, {} s of faults\n", options.seconds))?;
    let report = run(&options, &std::env::current_exe()?).await?;
    print(&format!("{report}\n"))?;
    Ok(if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints a text. It is not a failure if the reader, such as `head`, closes the pipe.
fn print(text: &str) -> std::io::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
