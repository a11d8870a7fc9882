//! A saga of three services, for runs with `--saga`.
//!
//! Writers ask for trips. The saga (`trip.rs`) asks three services for their part of each, one after the other
//! (`service.rs`). A service may refuse, answer late or, while faults hit it, not in time. Then the saga cancels what
//! it has asked for, the newest first.
//!
//! The saga and each service are a process of their own. All of them use the writers' database, so the same relays ship
//! what they publish, and each fault of the run hits them too.
//!
//! | module | concept |
//! |---|---|
//! | [`events`] | the requests, commands and answers |
//! | `trip` | the saga |
//! | `service` | the three services |
//! | [`record`] | what the database has of trips at the end |
//! | [`check`](mod@check) | what must hold of each trip |

pub mod check;
pub mod events;
pub mod record;
mod service;
mod trip;

use std::time::Duration;

use pillarbox_consumer::{Consumer, ConsumerConfig};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio_util::sync::CancellationToken;

use events::SERVICES;

/// The name of the saga.
pub(crate) const SAGA: &str = "trip";
/// The name of the saga's consumer.
const COORDINATOR: &str = "trips";
/// What the services write down, in the writers' database.
pub(crate) const TABLES: &str = include_str!("trips.sql");

/// The names of the consumers: the saga's, and one for each service.
pub(crate) fn consumers() -> impl Iterator<Item = &'static str> {
    std::iter::once(COORDINATOR).chain(SERVICES)
}

/// The settings of the saga's process, or of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TripRole {
    /// The name of the consumer, which says what it does.
    pub name: String,
    /// The database of the inbox, the outbox and the saga.
    pub database_url: String,
    /// The broker's servers, separated by commas.
    pub nats_url: String,
    /// The stream.
    pub stream: String,
    /// Whether the relays put the keys into partitions.
    pub partitioned: bool,
    /// How many times longer its times are.
    pub slow: u64,
}

impl TripRole {
    pub(crate) async fn play(self, stop: CancellationToken) -> anyhow::Result<()> {
        let database: PgConnectOptions = self.database_url.parse()?;
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(2))
            .connect_lazy_with(database);
        let client = async_nats::ConnectOptions::new()
            .retry_on_initial_connect()
            .ping_interval(Duration::from_secs(4));
        let client = client.connect(self.nats_url.split(',').collect::<Vec<_>>()).await?;
        let consumer = Consumer::with_config(client, pool, self.config())?;
        match SERVICES.contains(&&*self.name) {
            true => consumer.router(service::router()).run(stop).await?,
            false => consumer.with(trip::saga()).run(stop).await?,
        }
        Ok(())
    }

    fn config(&self) -> ConsumerConfig {
        let reads = match SERVICES.contains(&&*self.name) {
            true => vec![format!("ask.{}.*", self.name)],
            false => vec!["trip.*".to_owned(), "answer.*.*".to_owned()],
        };
        // The number of the partition comes after the topic's first word.
        let first = if self.partitioned { "faults.*." } else { "faults." };
        ConsumerConfig {
            filter_subjects: reads.into_iter().map(|subject| format!("{first}{subject}")).collect(),
            concurrency: 4,
            prefetch: 64,
            max_attempts: 4,
            backoff: Duration::from_millis(10),
            max_backoff: Duration::from_millis(100),
            handler_timeout: Duration::from_millis(2_000 * self.slow),
            ack_wait: Duration::from_millis(3_000 * self.slow),
            takeover: Duration::from_millis(1_500 * self.slow),
            ..ConsumerConfig::new(self.stream.clone(), self.name.clone())
        }
    }
}
