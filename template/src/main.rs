//! The process: HTTP, the consumer and the relay. It waits for what is away, and stops in order on SIGTERM.

use pillarbox::relay::{Relay, RelayConfig};
use pillarbox::{Consumer, service::Service};
use service::{STREAM, handlers, orders, prepare};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).init();
    let (database_url, nats_url) = (std::env::var("DATABASE_URL")?, std::env::var("NATS_URL")?);
    let pool = PgPool::connect_lazy(&database_url)?;
    let nats =
        async_nats::ConnectOptions::new().retry_on_initial_connect().connect(&nats_url).await?;
    let consumer = Consumer::new(nats.clone(), pool.clone(), STREAM, "confirmations")?;
    let relay =
        RelayConfig { database_url, nats_url, source: "/orders".into(), ..RelayConfig::default() };
    let service = Service::new();
    let app = orders::routes(pool.clone()).merge(service.readiness().routes());
    service
        .prepare("tables and stream", (pool, nats), prepare)
        .http(TcpListener::bind("0.0.0.0:8080").await?, app)
        .consumer(consumer.router(handlers()))
        .relay(Relay::new(relay)?)
        .run_until_signal()
        .await?;
    Ok(())
}
