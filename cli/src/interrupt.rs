//! Ctrl-C.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Makes SIGINT and SIGTERM end the process at once, with exit code 130.
///
/// A signal does that by default, except in the first process of a container, which ignores signals that it has no
/// handler for. Each change that a command makes to the database is made completely or not at all. A `replay` has sent
/// the events that its last progress line counts, and perhaps a few more.
pub(crate) fn ends_the_process() -> io::Result<()> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // In a task of its own, because the command may wait for a terminal or a pipe.
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(())
}
