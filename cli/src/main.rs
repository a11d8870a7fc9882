//! `pillarbox`: runs the relay, migrates the tables, and shows the status.

use std::process::ExitCode;

fn main() -> ExitCode {
    pillarbox_cli::main()
}
