//! Several relays in one process.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use crate::config::RelayConfig;
use crate::error::RelayError;
use crate::relay::Relay;
use crate::sharing::{Notice, Process};

/// The relays of one process, one for each outbox that it ships or stands by for.
#[derive(Debug)]
pub struct Relays {
    relays: Vec<Relay>,
    notice: Notice,
}

impl Relays {
    /// Relays with these settings. Connects to nothing yet.
    ///
    /// # Errors
    /// As [`Relay::new`], for the first configuration that cannot be used.
    pub fn new(configs: impl IntoIterator<Item = RelayConfig>) -> Result<Self, RelayError> {
        let process = Process::new();
        let relays = configs
            .into_iter()
            .map(|config| Relay::sharing(config, process.clone()))
            .collect::<Result<_, _>>()?;
        Ok(Self { relays, notice: process.notice.clone() })
    }

    /// Lets the program that embeds the relays report a problem of its process.
    pub fn notice(&self) -> Notice {
        self.notice.clone()
    }

    /// The relays, to read their state.
    pub fn each(&self) -> &[Relay] {
        &self.relays
    }

    /// Runs all of them until `shutdown` is cancelled, each as [`Relay::run`] does. An outage of one outbox's
    /// database does not touch the others. Dropping the future stops all at once.
    ///
    /// # Errors
    /// The error of the first relay that ends with one. The other relays are then stopped.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), RelayError> {
        let stop = shutdown.child_token();
        let mut running: FuturesUnordered<_> =
            self.relays.into_iter().map(|relay| relay.run(stop.clone())).collect();
        let mut failed = None;
        while let Some(ended) = running.next().await {
            if let Err(error) = ended {
                stop.cancel();
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
