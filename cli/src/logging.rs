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

/// The beginnings of the names of those parts of libraries that write passwords: `async_nats::connector` the broker's
/// URL with its login, at `debug`; `async_nats::connection` all of a login as it is sent, at `trace`;
/// `sqlx_postgres::options` the lines of a password file that is malformed, at `warn`.
const NEVER: [&str; 2] = ["async_nats::connect", "sqlx_postgres::options"];

/// How log lines are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. What is logged holds values that come from others, so neither format passes on characters that
/// act on a terminal.
pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    // A filter of its own: among the directives of one, the most specific wins, and `RUST_LOG` may be more specific.
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

/// A line of the log, written when it is whole.
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
        // There is nobody to tell that standard error is closed.
        let _ = io::stderr().write_all(harmless_json(&String::from_utf8_lossy(&self.0)).as_bytes());
    }
}
