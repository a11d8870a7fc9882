//! The processes of the shop. Each is this program, started again in another role.
//!
//! The standard input of a child is a pipe. The child stops when the other end closes, which happens when this process
//! ends, for whatever reason.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::process::{Child, Command};

use crate::service::Service;
use crate::shop::Addresses;

/// How long a child may take to stop.
pub const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// The relays' process, and one for each service.
#[derive(Debug)]
pub struct Children {
    pub relays: Process,
    pub services: Vec<Process>,
}

impl Children {
    pub fn start(addresses: &Addresses) -> anyhow::Result<Self> {
        let addresses = [
            "--postgres".to_owned(),
            addresses.postgres.clone(),
            "--nats".to_owned(),
            addresses.nats.clone(),
        ];
        let start = |name: &'static str, role: &[&str]| {
            let role = role.iter().map(|&word| word.to_owned());
            Process::start(name, role.chain(addresses.clone()).collect())
        };
        Ok(Self {
            relays: start("the relays", &["relays"])?,
            services: Service::ALL
                .iter()
                .map(|service| start(service.name(), &["service", service.name()]))
                .collect::<anyhow::Result<_>>()?,
        })
    }

    pub fn service(&mut self, service: Service) -> anyhow::Result<&mut Process> {
        self.services
            .iter_mut()
            .find(|process| process.name == service.name())
            .context("a service without a process")
    }

    /// Stops all of them. Returns the first error, if there is one.
    pub async fn stop(self) -> anyhow::Result<()> {
        let processes = std::iter::once(self.relays).chain(self.services);
        let stopped = futures::future::join_all(processes.map(Process::stop)).await;
        stopped.into_iter().collect()
    }
}

#[derive(Debug)]
pub struct Process {
    name: &'static str,
    arguments: Vec<String>,
    child: Child,
}

impl Process {
    fn start(name: &'static str, arguments: Vec<String>) -> anyhow::Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .args(&arguments)
            .stdin(Stdio::piped())
            // The terminal's Ctrl-C must not reach it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name, arguments, child })
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Kills it (SIGKILL), so that it cannot finish anything.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("killing {}", self.name))
    }

    pub fn restart(&mut self) -> anyhow::Result<()> {
        *self = Self::start(self.name, std::mem::take(&mut self.arguments))?;
        Ok(())
    }

    async fn stop(mut self) -> anyhow::Result<()> {
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
