//! `pillarbox`: runs the relay, migrates the tables, and shows how things stand.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
