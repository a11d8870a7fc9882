//! What every service has: a database with an inbox, a consumer for the events that it needs, and handlers.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use pillarbox::outbox;
use pillarbox::{Consumer, ConsumerConfig, Router, inbox};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio_util::sync::CancellationToken;

use crate::shop::{Addresses, STREAM};
use crate::{analytics, inventory, notifications, orders, payments};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Service {
    Orders,
    Payments,
    Inventory,
    Notifications,
    Analytics,
}

impl Service {
    pub const ALL: [Self; 5] =
        [Self::Orders, Self::Payments, Self::Inventory, Self::Notifications, Self::Analytics];

    /// The name of the service, its database and its consumer.
    pub fn name(self) -> &'static str {
        match self {
            Self::Orders => "orders",
            Self::Payments => "payments",
            Self::Inventory => "inventory",
            Self::Notifications => "notifications",
            Self::Analytics => "analytics",
        }
    }

    /// Whether it publishes events, and so has an outbox.
    pub fn speaks(self) -> bool {
        matches!(self, Self::Orders | Self::Payments | Self::Inventory)
    }

    pub fn listens_to(self) -> &'static [&'static str] {
        match self {
            Self::Orders => orders::LISTENS_TO,
            Self::Payments => payments::LISTENS_TO,
            Self::Inventory => inventory::LISTENS_TO,
            Self::Notifications => notifications::LISTENS_TO,
            Self::Analytics => analytics::LISTENS_TO,
        }
    }

    /// Whether it receives events with this subject.
    pub fn hears(self, subject: &str) -> bool {
        self.listens_to().iter().any(|wanted| match wanted.strip_suffix('>') {
            Some(start) => subject.starts_with(start),
            None => subject == *wanted,
        })
    }

    fn tables(self) -> &'static str {
        match self {
            Self::Orders => orders::TABLES,
            Self::Payments => payments::TABLES,
            Self::Inventory => inventory::TABLES,
            Self::Notifications => notifications::TABLES,
            Self::Analytics => analytics::TABLES,
        }
    }

    /// Its handlers of single events. `None` for the service that counts events in batches.
    fn router(self) -> Option<Router> {
        match self {
            Self::Orders => Some(orders::router()),
            Self::Payments => Some(payments::router()),
            Self::Inventory => Some(inventory::router()),
            Self::Notifications => Some(notifications::router()),
            Self::Analytics => None,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Creates the tables of a service's database: the inbox, the outbox, and its own.
pub async fn migrate(service: Service, pool: &PgPool) -> anyhow::Result<()> {
    inbox::migrate(pool).await?;
    if service.speaks() {
        outbox::migrate(pool).await?;
    }
    sqlx::raw_sql(service.tables()).execute(pool).await?;
    Ok(())
}

/// Handles the events of a service until it is told to stop. This is all that its process does.
pub async fn run(
    service: Service,
    addresses: &Addresses,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let pool =
        PgPoolOptions::new().max_connections(10).connect(&addresses.database(service)).await?;
    let broker = async_nats::connect(&addresses.nats).await?;
    let config = ConsumerConfig {
        filter_subjects: service.listens_to().iter().map(|&subject| subject.into()).collect(),
        // How soon a restarted process takes over from a killed one.
        takeover: Duration::from_secs(1),
        ..ConsumerConfig::new(STREAM, service.name())
    };
    let consumer = Consumer::with_config(broker, pool, config)?;
    match service.router() {
        Some(router) => consumer.router(router).run(shutdown).await?,
        None => consumer.on_batch(analytics::count).run(shutdown).await?,
    }
    Ok(())
}
