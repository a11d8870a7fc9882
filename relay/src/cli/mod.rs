//! The command line.

mod config;
mod dead_letters;
mod http;
mod migrate;
mod relay;
mod replay;
mod settings;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use pillarbox_relay::config::LoadError;
use pillarbox_relay::error::full_text;

/// Transactional outbox for Postgres and NATS JetStream.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by a second signal.
#[derive(Debug, Parser)]
#[command(name = "pillarbox", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,

    /// How log lines are written to standard error. RUST_LOG sets what is logged; `info` otherwise.
    #[arg(long, global = true, value_enum, default_value = "text", env = "PILLARBOX_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ship committed outbox rows to JetStream, until SIGTERM or SIGINT.
    Relay(relay::Relay),
    /// Check the settings, or show them.
    Config(config::ConfigCommand),
    /// Create or update the tables, or print the SQL that does.
    Migrate(migrate::Migrate),
    /// Show backlog, oldest age, cursor and holder.
    Status(status::StatusCommand),
    /// Look at events that were given up, try them again, or discard them.
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Send shipped events again.
    Replay(replay::Replay),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

pub(crate) fn run(cli: Cli) -> ExitCode {
    start_logging(cli.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let done = runtime.block_on(async {
        match cli.command {
            Command::Relay(command) => command.run().await,
            Command::Config(command) => command.run(),
            Command::Migrate(command) => command.run().await,
            Command::Status(command) => command.run().await,
            Command::DeadLetters(command) => command.run().await,
            Command::Replay(command) => command.run().await,
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = matches!(error.downcast_ref(), Some(LoadError::Missing { .. }));
            let code = failed(&*error);
            if usage { ExitCode::from(2) } else { code }
        }
    }
}

type Done = Result<(), Box<dyn std::error::Error>>;

fn failed(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("pillarbox: {}", full_text(error));
    ExitCode::FAILURE
}

fn start_logging(format: LogFormat) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(
            "info,async_nats=warn,async_nats::connector=off,jetstream_extra=warn,sqlx=warn",
        )
    });
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match format {
        LogFormat::Text => {
            log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init()
        }
        LogFormat::Json => log.json().init(),
    }
}
