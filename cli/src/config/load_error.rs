//! Why settings cannot be used.

use std::path::PathBuf;

use pillarbox_relay::ConfigError;

use super::file::FileError;
use super::sources::FILE;

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A variable or a flag.
    #[error("{name} cannot be used: it must be {wanted}")]
    Text {
        /// The variable or the flag.
        name: String,
        /// What it must be.
        wanted: String,
    },
    /// A value.
    #[error("{error} ({origin})")]
    Value {
        /// What is wrong with it.
        error: ConfigError,
        /// Where it was set.
        origin: String,
    },
    /// A key that must be set is not.
    #[error("{key} is not set: give --{flag}, set the variable {env}, or write {key} into {FILE}")]
    Missing {
        /// The key.
        key: &'static str,
        /// Its flag.
        flag: &'static str,
        /// Its variable.
        env: &'static str,
    },
    /// A flag that could be meant for one outbox or for all.
    #[error(
        "--{flag} is given, and [[outbox]] in {} sets {key} on line {line} too; leave one of them out", file.display()
    )]
    FlagAndOutbox {
        /// The flag.
        flag: &'static str,
        /// Its key.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// Where the outbox sets it.
        line: usize,
    },
    /// Two outboxes are the same.
    #[error(
        "two outboxes in {} are the same: name {name:?} in schema {schema:?} of {database}; give each relay of an outbox \
         a name of its own", file.display()
    )]
    SameOutbox {
        /// The file.
        file: PathBuf,
        /// Their name.
        name: String,
        /// Their schema.
        schema: String,
        /// Their database, without secrets.
        database: String,
    },
    /// One outbox is needed, and none or several were chosen.
    #[error(
        "{found} of the outboxes in {} fit; choose one with --name, --schema or --database-url: {}",
        file.display(), outboxes.join(", ")
    )]
    NotOne {
        /// The file.
        file: PathBuf,
        /// How many fit what was given.
        found: usize,
        /// All of them.
        outboxes: Vec<String>,
    },
}
