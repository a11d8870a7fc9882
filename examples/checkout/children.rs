//! The processes of the shop. Each is this program, started again in another role.

use anyhow::Context;

use crate::process::Process;
use crate::service::Service;
use crate::shop::Addresses;

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
            .find(|process| process.name() == service.name())
            .context("a service without a process")
    }

    /// Stops all of them. Returns the first error, if there is one.
    pub async fn stop(self) -> anyhow::Result<()> {
        let processes = std::iter::once(self.relays).chain(self.services);
        let stopped = futures::future::join_all(processes.map(Process::stop)).await;
        stopped.into_iter().collect()
    }
}
