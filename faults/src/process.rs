//! A process of a run. It is started, killed and paused, and reaches its servers through its own proxies.

use std::fs::File;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use pillarbox_testkit::Proxy;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, MutexGuard};

use crate::role::{Role, STOP_DEADLINE, Told};

/// A process and its connections.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    /// Its proxy to the database.
    pub(crate) database: Proxy,
    /// Its proxy to the broker.
    pub(crate) broker: Proxy,
    program: PathBuf,
    folder: PathBuf,
    role: Role,
    /// A fault holds this while it works on the process.
    life: Mutex<Life>,
}

/// The incarnations of a process.
#[derive(Debug, Default)]
pub(crate) struct Life {
    child: Option<Child>,
    incarnation: usize,
}

impl Process {
    pub(crate) fn new(
        name: String,
        (database, broker): (Proxy, Proxy),
        program: PathBuf,
        folder: PathBuf,
        role: Role,
    ) -> Self {
        Self { name, database, broker, program, folder, role, life: Mutex::default() }
    }

    /// The names of its journals begin with this.
    pub(crate) fn is_journal(&self, file: &str) -> bool {
        file.ends_with(".journal") && file.starts_with(&format!("{}-", self.name))
    }

    /// While this is held, nothing else happens to the process.
    pub(crate) async fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().await
    }

    pub(crate) async fn start(&self) -> anyhow::Result<()> {
        self.start_as(&mut *self.life().await)
    }

    /// Starts its next incarnation.
    pub(crate) fn start_as(&self, life: &mut Life) -> anyhow::Result<()> {
        life.incarnation += 1;
        let file =
            |kind: &str| self.folder.join(format!("{}-{}.{kind}", self.name, life.incarnation));
        let told = Told {
            name: format!("{}-{}", self.name, life.incarnation),
            journal: file("journal"),
            role: self.role.clone(),
        };
        let log = File::create(file("log")).context("making a log file")?;
        let child = Command::new(&self.program)
            .arg("role")
            .arg(serde_json::to_string(&told)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // The terminal's Ctrl-C must not reach it, because it ends with its input.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        life.child = Some(child);
        Ok(())
    }

    /// How it ended, if it has ended and no fault works on it.
    pub(crate) fn ended_by_itself(&self) -> Option<(ExitStatus, MutexGuard<'_, Life>)> {
        let mut life = self.life.try_lock().ok()?;
        let status = life.child.as_mut()?.try_wait().ok()??;
        life.child = None;
        Some((status, life))
    }

    /// Stops it cleanly.
    pub(crate) async fn stop(&self) -> anyhow::Result<()> {
        self.life().await.stop(&self.name).await
    }
}

impl Life {
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.context("it does not run")?, signal)?;
        Ok(())
    }

    /// Ends it (SIGKILL), and returns when it is gone.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Lets it end by itself.
    pub(crate) async fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        // `wait` first closes its input.
        let deadline = STOP_DEADLINE + Duration::from_secs(5);
        match tokio::time::timeout(deadline, child.wait()).await {
            Ok(status) => {
                let status = status?;
                anyhow::ensure!(status.success(), "{name} stopped with {status}");
                Ok(())
            }
            Err(_) => {
                child.kill().await?;
                anyhow::bail!("{name} did not stop");
            }
        }
    }
}
