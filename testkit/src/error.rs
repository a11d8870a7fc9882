//! What can go wrong while servers are found, started or stopped.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why a server could not be found or started, or did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestkitError {
    /// A program that an environment variable names does not exist or cannot be used.
    #[error("{variable} = {path} cannot be used: {problem}")]
    Override {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No server was found, and none could be installed.
    #[error(
        "no {server} was found in the usual places, and the private install failed: {problem}\n\
         install {hint}, or set {variable}"
    )]
    NotFound {
        /// Which server.
        server: &'static str,
        /// What the install said.
        problem: String,
        /// What to install.
        hint: &'static str,
        /// The environment variable that names one.
        variable: &'static str,
    },
    /// The server ended, or did not answer in time. The text ends with its own last log lines.
    #[error("{server} did not start: {problem}; its log ends with:\n{log}")]
    Start {
        /// Which server.
        server: &'static str,
        /// What was seen.
        problem: String,
        /// The end of its log.
        log: String,
    },
    /// A helper program failed.
    #[error("{program} ended with {status}:\n{output}")]
    Program {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// A condition did not become true in time.
    #[error("waited {waited:?} for {what}, without success; last seen: {last}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// The last error, or "not yet".
        last: String,
    },
    /// An operation on a file, a process or a socket failed.
    #[error("{what} failed")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The server is not running, so it cannot be signalled.
    #[error("{server} is not running")]
    NotRunning {
        /// Which server.
        server: &'static str,
    },
    /// A statement failed in Postgres, or the connection was lost.
    #[error("Postgres returned an error")]
    Postgres(#[from] sqlx::Error),
    /// The connection to the broker failed.
    #[error("could not connect to nats-server")]
    Nats(#[from] async_nats::ConnectError),
}

pub(crate) trait IoContext<T> {
    fn context(self, what: impl Into<String>) -> Result<T, TestkitError>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn context(self, what: impl Into<String>) -> Result<T, TestkitError> {
        self.map_err(|source| TestkitError::Io { what: what.into(), source })
    }
}
