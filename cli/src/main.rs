//! `pillarbox`: runs the relay, migrates the tables, and shows how things stand.

use std::process::ExitCode;

fn main() -> ExitCode {
    pillarbox_cli::main()
}
