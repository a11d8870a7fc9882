//! A relay with the default settings on `DATABASE_URL` and `NATS_URL`, until its standard input ends.

use std::env;
use std::time::Duration;

use anyhow::Result;
use pillarbox_relay::{Relay, RelayConfig};
use pillarbox_testkit::told_to_stop;

/// Longer than the relay waits for acknowledgements when it stops.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

#[tokio::main]
async fn main() -> Result<()> {
    let stop = told_to_stop(STOP_DEADLINE);
    let config = RelayConfig {
        database_url: env::var("DATABASE_URL")?,
        nats_url: env::var("NATS_URL")?,
        ..RelayConfig::default()
    };
    Ok(Relay::new(config)?.run(stop).await?)
}
