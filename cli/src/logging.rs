//! The log, on standard error.

use std::fmt::Debug;
use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::terminal::{harmless, harmless_json};

/// What is logged unless `RUST_LOG` says otherwise.
const DEFAULT: &str = "info,async_nats=warn,jetstream_extra=warn,sqlx=warn";

/// Prefixes of the library modules that log passwords. `async_nats::connector` logs the broker's URL with its login at
/// `debug`. `async_nats::connection` logs a whole login as it is sent, at `trace`. `sqlx_postgres::options` logs the
/// lines of a malformed password file at `warn`.
const NEVER: [&str; 2] = ["async_nats::connect", "sqlx_postgres::options"];

/// How log lines are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. Log lines hold values that others wrote, so both formats replace characters that control a terminal.
pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    // This is a separate filter. Within one filter the most specific directive wins, and one in `RUST_LOG` may be more
    // specific than ours.
    let harmless =
        filter_fn(|metadata| !NEVER.iter().any(|part| metadata.target().starts_with(part)))
            .with_max_level_hint(LevelFilter::TRACE);
    let log = match format {
        LogFormat::Text => layer()
            .with_target(false)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .fmt_fields(debug_fn(field).delimited(" "))
            .boxed(),
        LogFormat::Json => layer().with_target(false).json().with_writer(JsonLine::default).boxed(),
    };
    tracing_subscriber::registry().with(log.with_filter(filter.and(harmless))).init();
}

fn field(to: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let value = harmless(&format!("{value:?}"));
    match field.name() {
        "message" => write!(to, "{value}"),
        name => write!(to, "{name}={value}"),
    }
}

/// A line of the log, written to standard error when it is complete.
#[derive(Default)]
struct JsonLine(Vec<u8>);

impl Write for JsonLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for JsonLine {
    fn drop(&mut self) {
        // If standard error is closed, there is nowhere to report it.
        let _ = io::stderr().write_all(harmless_json(&String::from_utf8_lossy(&self.0)).as_bytes());
    }
}
