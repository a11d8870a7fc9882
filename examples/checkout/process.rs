//! A child process: this program, started again in another role.
//!
//! The standard input of a child is a pipe. The child stops when the other end closes, which happens when this process
//! ends, for whatever reason.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::process::{Child, Command};

/// How long a child may take to stop.
pub const STOP_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Process {
    name: &'static str,
    arguments: Vec<String>,
    child: Child,
}

impl Process {
    pub fn start(name: &'static str, arguments: Vec<String>) -> anyhow::Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .args(&arguments)
            .stdin(Stdio::piped())
            // The terminal's Ctrl-C must not reach it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name, arguments, child })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Kills it (SIGKILL), so that it cannot finish anything.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("{} ended by itself, with {status}", self.name);
        }
        self.child.kill().await.with_context(|| format!("killing {}", self.name))
    }

    pub fn restart(&mut self) -> anyhow::Result<()> {
        *self = Self::start(self.name, std::mem::take(&mut self.arguments))?;
        Ok(())
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        let name = self.name;
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("{name} ended by itself, with {status}");
        }
        // `wait` first closes the child's input.
        let stopped = tokio::time::timeout(2 * STOP_DEADLINE, self.child.wait()).await;
        let Ok(status) = stopped else {
            self.child.kill().await?;
            anyhow::bail!("{name} did not stop");
        };
        let status = status?;
        anyhow::ensure!(status.success(), "{name} stopped with {status}");
        Ok(())
    }
}
