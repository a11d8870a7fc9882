//! A relay with the default settings on `DATABASE_URL` and `NATS_URL`, until its standard input ends.

use std::env;

use anyhow::Result;
use pillarbox_relay::{Relay, RelayConfig};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<()> {
    let shutdown = CancellationToken::new();
    let ended = shutdown.clone();
    std::thread::spawn(move || {
        // Ends with the program that started this one, also when that is killed.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.cancel();
    });
    let config = RelayConfig {
        database_url: env::var("DATABASE_URL")?,
        nats_url: env::var("NATS_URL")?,
        ..RelayConfig::default()
    };
    Ok(Relay::new(config)?.run(shutdown).await?)
}
