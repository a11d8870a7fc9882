//! Ctrl-C.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Has SIGINT and SIGTERM end the process at once, with 130.
///
/// By itself a signal would do that, except for a program that is the first of its container: it ignores what it does
/// not ask for. Each change that a command makes to the database is whole or not made. A `replay` has sent what its last
/// line of progress says, and perhaps some events more.
pub(crate) fn ends_the_process() -> io::Result<()> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // Beside the command, which may wait for a terminal or a pipe.
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(())
}
