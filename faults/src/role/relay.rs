//! A relay, by the library, in a process of its own.

use pillarbox_relay::{Relay, RelayConfig};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// The settings of a relay's process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RelayRole {
    /// Its settings.
    pub config: Box<RelayConfig>,
}

impl RelayRole {
    pub(super) async fn play(self, stop: CancellationToken) -> anyhow::Result<()> {
        Relay::new(*self.config)?.run(stop).await?;
        Ok(())
    }
}
