//! The servers that the services need: a Postgres with a database for each, and a broker with one stream.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::stream::{Config, Stream};
use async_nats::jetstream::{self, Context};
use pillarbox_testkit::Servers;
use sqlx::PgPool;

use crate::assortment;
use crate::service::{self, Service};

pub const STREAM: &str = "SHOP";

/// Where the servers are.
#[derive(Clone, Debug, clap::Args)]
pub struct Addresses {
    /// The Postgres server, postgres://user@host:port.
    #[arg(long)]
    pub postgres: String,
    /// The broker, nats://host:port.
    #[arg(long)]
    pub nats: String,
}

impl Addresses {
    pub fn database(&self, service: Service) -> String {
        format!("{}/{service}", self.postgres)
    }
}

#[derive(Debug)]
pub struct Shop {
    pub addresses: Addresses,
    pub jetstream: Context,
    pub stream: Stream,
    pub servers: Servers,
    pools: Vec<PgPool>,
}

impl Shop {
    /// Starts the servers, creates the databases and the stream, and fills the stock.
    pub async fn open(orders: i64) -> anyhow::Result<Self> {
        let servers = Servers::start().await?;
        let addresses = Addresses {
            postgres: servers.postgres.url("").trim_end_matches('/').to_owned(),
            nats: servers.nats.url(),
        };
        let mut pools = Vec::new();
        for service in Service::ALL {
            let database = servers.postgres.create_database(service.name()).await?;
            service::migrate(service, &database.pool)
                .await
                .with_context(|| format!("making the tables of {service}"))?;
            pools.push(database.pool);
        }
        let jetstream = jetstream::new(async_nats::connect(&addresses.nats).await?);
        let stream = jetstream
            .create_stream(Config {
                name: STREAM.into(),
                subjects: vec!["orders.>".into(), "payments.>".into(), "inventory.>".into()],
                // Shorter than the inboxes remember, so that they know every event that the stream can repeat.
                max_age: Duration::from_secs(24 * 60 * 60),
                // Lets the relays use the server's fast ingest.
                allow_batch_publish: true,
                ..Config::default()
            })
            .await?;
        let shop = Self { addresses, jetstream, stream, servers, pools };
        for (sku, pieces) in assortment::stock(orders) {
            sqlx::query("insert into stock (sku, delivered, remaining) values ($1, $2, $2)")
                .bind(sku)
                .bind(pieces)
                .execute(shop.pool(Service::Inventory))
                .await?;
        }
        Ok(shop)
    }

    pub fn pool(&self, service: Service) -> &PgPool {
        // One for each, in order.
        &self.pools[service as usize]
    }
}
