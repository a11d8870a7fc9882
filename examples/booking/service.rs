//! What runs in each process: the saga, a provider, or the relays.

use std::time::Duration;

use clap::{Args, Subcommand};
use pillarbox::{Consumer, ConsumerConfig};
use pillarbox_relay::{Relay, RelayConfig};
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{provider, trip};

pub const STREAM: &str = "TRAVEL";

/// The role of a process.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// The saga.
    #[command(hide = true)]
    Saga(Addresses),
    /// A provider.
    #[command(hide = true)]
    Provider {
        name: String,
        #[command(flatten)]
        addresses: Addresses,
    },
    /// The relays of all databases.
    #[command(hide = true)]
    Relays {
        #[arg(long)]
        nats: String,
        /// Outboxes: a name, `=`, and the address of the database.
        outboxes: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub struct Addresses {
    #[arg(long)]
    database: String,
    #[arg(long)]
    nats: String,
}

pub async fn run(role: Role, shutdown: CancellationToken) -> anyhow::Result<()> {
    match role {
        Role::Saga(addresses) => {
            let consumer = consumer(&addresses, "trips", &["trips.>", "answers.>"]).await?;
            consumer.with(trip::saga()).run(shutdown).await?;
        }
        Role::Provider { name, addresses } => {
            let consumer = consumer(&addresses, &name, &[&format!("commands.{name}.>")]).await?;
            consumer.router(provider::router()).run(shutdown).await?;
        }
        Role::Relays { nats, outboxes } => relays(&nats, outboxes, shutdown).await?,
    }
    Ok(())
}

async fn consumer(
    addresses: &Addresses,
    name: &str,
    subjects: &[&str],
) -> anyhow::Result<Consumer> {
    let config = ConsumerConfig {
        filter_subjects: subjects.iter().map(|&subject| subject.to_owned()).collect(),
        // How soon a restarted process takes over from a killed one.
        takeover: Duration::from_secs(1),
        ..ConsumerConfig::new(STREAM, name)
    };
    let pool = PgPoolOptions::new().max_connections(8).connect(&addresses.database).await?;
    let client = async_nats::connect(&addresses.nats).await?;
    Ok(Consumer::with_config(client, pool, config)?)
}

/// Ships what is in the outboxes. `pillarbox relay` is the same relay as a program.
async fn relays(
    nats: &str,
    outboxes: Vec<String>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut relays = JoinSet::new();
    for outbox in outboxes {
        let (name, database) = outbox.split_once('=').unwrap_or(("", &outbox));
        let config = RelayConfig {
            database_url: database.into(),
            nats_url: nats.into(),
            source: format!("/travel/{name}"),
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
