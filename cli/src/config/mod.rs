//! The program's settings, from `pillarbox.toml`, environment and flags.

mod database_files;
mod file;
mod keys;
mod layers;
mod print;

pub use self::file::FileError;
pub use self::keys::{KEYS, Key, Kind, Scope, key};
pub use self::layers::{LoadError, ProgramConfig, Settings, Sources, Wanted};
