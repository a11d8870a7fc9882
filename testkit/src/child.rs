//! How a program that is started again in another role knows when to stop.

use std::io::Read;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// A token for a child whose standard input is a pipe from its owner. It is cancelled when the other end closes, which
/// happens when the owner ends, for whatever reason. A child that has not stopped `deadline` later is ended (exit code
/// 1).
///
/// On Linux the child is also killed when the thread that started it ends. That works even if the child is paused.
pub fn told_to_stop(deadline: Duration) -> CancellationToken {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let stop = CancellationToken::new();
    let told = stop.clone();
    std::thread::spawn(move || {
        let mut input = std::io::stdin();
        while input.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
        told.cancel();
        std::thread::sleep(deadline);
        std::process::exit(1);
    });
    stop
}
