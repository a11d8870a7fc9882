//! `pillarbox`: runs the relay, migrates the tables, and shows how things stand.

mod cli;

use std::process::ExitCode;

use clap::FromArgMatches;

fn main() -> ExitCode {
    match cli::Cli::from_arg_matches(&cli::command().get_matches()) {
        Ok(cli) => cli::run(cli),
        Err(error) => error.exit(),
    }
}
