//! The command line.

mod actions;
mod ages;
mod completions;
mod config;
mod confirm;
mod console;
mod consumers;
mod dead_letters;
mod doctor;
mod inbox_status;
mod limit;
mod man;
mod migrate;
mod place;
mod relay;
mod relays;
mod replay;
mod sagas;
mod scheduled;
mod settings;
mod signature;
mod status;
mod trace;
mod trail;

use std::io::Write;
use std::process::ExitCode;

use crate::config::LoadError;
use crate::logging::LogFormat;
use crate::{interrupt, logging, terminal};
use clap::{CommandFactory, Parser, Subcommand};
use pillarbox_store::full_text;
use pillarbox_store::row_security;
use pillarbox_store::shown::age;

/// The exit codes of all commands. The man pages and docs/commands.md list them too.
const EXIT_CODES: [(&str, &str); 4] = [
    ("0", "done; for doctor: nothing failed, though there may be warnings"),
    ("1", "failed; the reason is on standard error"),
    ("2", "wrong usage: nothing was done"),
    ("130", "stopped at once by SIGTERM or SIGINT; relay: by the second one"),
];

/// Transactional outbox for Postgres and NATS JetStream.
#[derive(Debug, Parser)]
#[command(name = "pillarbox", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,

    /// The format of log lines on standard error. RUST_LOG sets what is logged; the default is `info`.
    #[arg(long, global = true, value_enum, default_value = "text", env = "PILLARBOX_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ship committed outbox rows to JetStream, until SIGTERM or SIGINT.
    Relay(relay::Relay),
    /// Check the settings, or show them.
    Config(config::ConfigCommand),
    /// Create or update the tables, or print the SQL that does it.
    Migrate(migrate::Migrate),
    /// Show backlog, oldest age, cursor and holder.
    Status(status::StatusCommand),
    /// Check the database, the outbox, the broker and its streams, and say what to fix.
    Doctor(doctor::DoctorCommand),
    /// Look at events that were given up, try them again, or discard them.
    DeadLetters(Box<dead_letters::DeadLettersCommand>),
    /// Look at consumers, pause and resume them, limit their rate, or remove those that are gone.
    Consumers(consumers::ConsumersCommand),
    /// List the relays that have run on an outbox, or remove one that is gone.
    Relays(relays::RelaysCommand),
    /// Look at what operators have done.
    Actions(actions::ActionsCommand),
    /// Look at events that are scheduled for later, or cancel them.
    Scheduled(scheduled::ScheduledCommand),
    /// Look at the instances of sagas, or end one by hand.
    Sagas(sagas::SagasCommand),
    /// Serve the operator's page: what is wrong, and what to do about it.
    Console(console::ConsoleCommand),
    /// Send shipped events again.
    Replay(replay::Replay),
    /// Record what goes through the streams, without payloads, until SIGTERM or SIGINT.
    Trail(trail::TrailCommand),
    /// Follow an event, a key or a correlation id through all services.
    Trace(trace::TraceCommand),
    /// Print a shell's completions for this program.
    Completions(completions::Completions),
    /// Print this program's manual page, or write the pages of all commands to files.
    Man(man::ManPages),
}

/// The command line, with its exit codes at the end of each help.
pub(crate) fn command() -> clap::Command {
    let codes: String =
        EXIT_CODES.iter().map(|(code, meaning)| format!("\n  {code:<4} {meaning}")).collect();
    ending_with(Cli::command(), &format!("Exit codes:{codes}"))
}

fn ending_with(command: clap::Command, help: &str) -> clap::Command {
    command.after_help(help.to_owned()).mut_subcommands(|below| ending_with(below, help))
}

pub(crate) fn run(cli: Cli) -> ExitCode {
    logging::start(cli.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let done = runtime.block_on(async {
        // These handle signals themselves, to stop cleanly.
        if !matches!(cli.command, Command::Relay(_) | Command::Trail(_) | Command::Console(_)) {
            interrupt::ends_the_process()?;
        }
        match cli.command {
            Command::Relay(command) => command.run().await,
            Command::Config(command) => command.run(),
            Command::Migrate(command) => command.run().await,
            Command::Status(command) => command.run().await,
            Command::Doctor(command) => command.run().await,
            Command::DeadLetters(command) => command.run().await,
            Command::Consumers(command) => command.run().await,
            Command::Relays(command) => command.run().await,
            Command::Actions(command) => command.run().await,
            Command::Scheduled(command) => command.run().await,
            Command::Sagas(command) => command.run().await,
            Command::Console(command) => command.run().await,
            Command::Replay(command) => command.run().await,
            Command::Trail(command) => command.run().await,
            Command::Trace(command) => command.run().await,
            Command::Completions(command) => command.run(),
            Command::Man(command) => command.run(),
        }
    });
    // A lookup of a host's name may still run. It cannot be cancelled, and it takes long while no name server answers.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = matches!(error.downcast_ref(), Some(LoadError::Missing { .. }));
            let code = failed(&*error);
            if usage { ExitCode::from(2) } else { code }
        }
    }
}

/// Writes to standard output. It is not a failure if the reader closes the pipe early, as `head` does.
fn print(text: &(impl AsRef<[u8]> + ?Sized)) -> Done {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// As [`print`], for JSON.
fn print_json(json: &str) -> Done {
    print(&terminal::harmless_json(json))
}

/// Prints a JSON object on a line for each item.
fn print_json_lines<T: serde::Serialize>(items: impl IntoIterator<Item = T>) -> Done {
    let mut lines = String::new();
    for item in items {
        lines += &serde_json::to_string(&item)?;
        lines.push('\n');
    }
    print_json(&lines)
}

/// Whether the database refused because the role lacks a right.
fn lacks_a_right(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    error.and_then(|error| error.code()).as_deref() == Some("42501")
}

type Done = Result<(), Box<dyn std::error::Error>>;

fn failed(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("pillarbox: {}", terminal::harmless(&full_text(error)));
    if let Some(hint) = hint(error) {
        eprintln!("{hint}");
    }
    ExitCode::FAILURE
}

/// What to do about a failure whose own text says little.
fn hint(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let error = causes.find_map(|error| error.downcast_ref::<sqlx::Error>())?;
    let code = error.as_database_error().and_then(|error| error.code());
    match (error, code.as_deref()) {
        (_, Some("42P01" | "3F000")) => Some(
            "The tables do not exist here: run `pillarbox migrate`, or give the right database or --schema.",
        ),
        (_, Some("57014")) => Some(
            "The server cancelled the statement because it took too long: the database is slow, or something that the \
             statement needs is locked. Try again; --timeout-s makes the command wait longer.",
        ),
        _ if row_security::is_refusal(error) => Some(row_security::REMEDY),
        (_, Some("42501")) => Some(
            "The role lacks a right: `pillarbox migrate --print-grants` prints what each role needs.",
        ),
        (sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut, _)
        | (_, Some("28P01" | "28000" | "3D000" | "53300" | "57P03")) => {
            Some("The database cannot be used: run `pillarbox doctor`, which says more.")
        }
        _ => None,
    }
}
