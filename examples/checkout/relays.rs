//! The relays, one for each outbox, all in one process. `pillarbox relay` is the same relay as a program.

use std::time::Duration;

use pillarbox_relay::{Relay, RelayConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::service::Service;
use crate::shop::Addresses;

/// Ships what is in the outboxes, until it is told to stop.
pub async fn run(addresses: &Addresses, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut relays = JoinSet::new();
    for service in Service::ALL.into_iter().filter(|service| service.speaks()) {
        let config = RelayConfig {
            database_url: addresses.database(service),
            nats_url: addresses.nats.clone(),
            source: format!("/shop/{service}"),
            // How soon a restarted relay takes over from a killed one.
            lease: Duration::from_millis(1_500),
            ..RelayConfig::default()
        };
        relays.spawn(Relay::new(config)?.run(shutdown.clone()));
    }
    while let Some(ended) = relays.join_next().await {
        ended??;
    }
    Ok(())
}
