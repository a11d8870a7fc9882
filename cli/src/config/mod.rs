//! The program's settings, from `pillarbox.toml`, environment and flags.

mod database_files;
mod exposed_files;
mod file;
mod keys;
mod layers;
mod listen_address;
mod load_error;
mod print;
mod settings;
mod sources;

pub use self::file::FileError;
pub use self::keys::{KEYS, Key, Kind, Scope, key};
pub use self::load_error::LoadError;
pub use self::settings::{ProgramConfig, Settings};
pub use self::sources::{Sources, Wanted};
