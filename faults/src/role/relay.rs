//! A relay, by the library, in a process of its own.

use pillarbox_relay::{Protection, Relay, RelayConfig};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::options::SwitchedOff;

/// The settings of a relay's process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RelayRole {
    /// Its settings.
    pub config: Box<RelayConfig>,
    /// The protection that is switched off.
    pub switched_off: Option<SwitchedOff>,
}

impl RelayRole {
    pub(super) async fn play(self, stop: CancellationToken) -> anyhow::Result<()> {
        let relay = Relay::new(*self.config)?;
        let relay = match self.switched_off {
            Some(SwitchedOff::Floor) => relay.without(Protection::Floor),
            Some(SwitchedOff::Fence) => relay.without(Protection::Fence),
            Some(SwitchedOff::Dedup) | None => relay,
        };
        relay.run(stop).await?;
        Ok(())
    }
}
