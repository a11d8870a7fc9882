//! The program `pillarbox`: its settings, its commands and its endpoints. The relay itself is
//! [`pillarbox_relay`], which needs none of this.
//!
//! ```no_run
//! use pillarbox_cli::config::{Settings, Sources};
//!
//! # fn example() -> Result<(), pillarbox_cli::config::LoadError> {
//! let settings = Settings::load(&Sources::of_this_process())?;
//! println!("{}", settings.print());
//! # Ok(())
//! # }
//! ```
//!
//! | module | concept |
//! |---|---|
//! | [`config`] | the settings, from `pillarbox.toml`, environment and flags |
//! | `commands` | the command line, a file for each command |
//! | [`doctor`] | what is wrong, and what to do about it |
//! | `http` | `/healthz`, `/readyz` and `/metrics` |
//! | `logging`, `terminal`, `interrupt` | the log, what may be shown on a terminal, and Ctrl-C |

mod commands;
pub mod config;
pub mod doctor;
mod http;
mod interrupt;
mod logging;
mod terminal;

use std::process::ExitCode;

use clap::FromArgMatches;

/// Runs the program with the arguments and the environment of this process, and returns the exit code. Wrong arguments
/// and `--help` end the process at once, as usual with clap.
pub fn main() -> ExitCode {
    match commands::Cli::from_arg_matches(&commands::command().get_matches()) {
        Ok(cli) => commands::run(cli),
        Err(error) => error.exit(),
    }
}
