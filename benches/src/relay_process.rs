//! A relay as a process of its own, so that its memory and its processor time are its own, too.

use std::env;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pillarbox_testkit::Nats;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::backlog::Outbox;
use crate::machine::{memory_of, processor_time_of};

/// How long it may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// A running relay with the default settings. It is killed when this is dropped.
#[derive(Debug)]
pub struct RelayProcess {
    child: Child,
    pid: u32,
}

impl RelayProcess {
    /// Starts it for this outbox.
    ///
    /// # Errors
    /// If the program is not where Cargo puts it, or cannot be started.
    pub fn start(outbox: &Outbox, nats: &Nats) -> Result<Self> {
        let program = env::current_exe()?;
        let folder = program.ancestors().nth(2).context("this program is in no target folder")?;
        let child = Command::new(folder.join("relay_process"))
            .env("DATABASE_URL", outbox.url())
            .env("NATS_URL", nats.url())
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting relay_process, which Cargo builds with the benchmarks")?;
        let pid = child.id().context("the relay has ended")?;
        Ok(Self { child, pid })
    }

    /// Its memory in bytes, by a field of `/proc`; 0 where there is no such file.
    pub fn memory(&self, field: &str) -> u64 {
        memory_of(self.pid, field).unwrap_or(0)
    }

    /// The processor time that it has taken; 0 where there is no `/proc`.
    pub fn processor_time(&self) -> Duration {
        processor_time_of(self.pid).unwrap_or_default()
    }

    /// Stops it, and waits for it.
    ///
    /// # Errors
    /// If it does not end in time, or fails.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        ensure!(timeout(STOP_DEADLINE, self.child.wait()).await??.success(), "the relay failed");
        Ok(())
    }
}
