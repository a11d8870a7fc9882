//! The service: its tables, its stream and its handlers.

pub mod confirmations;
pub mod events;
pub mod orders;

use pillarbox::consumer::streams::StreamSpec;
use pillarbox::{Router, inbox, outbox};
use sqlx::PgPool;

/// The stream that holds this service's events.
pub const STREAM: &str = "ORDERS";

/// What must be there before events move. It is safe to repeat.
pub async fn prepare((pool, nats): (PgPool, async_nats::Client)) -> anyhow::Result<()> {
    outbox::migrate(&pool).await?;
    inbox::migrate(&pool).await?;
    sqlx::raw_sql(include_str!("../migrations/0001_orders.sql")).execute(&pool).await?;
    let jetstream = async_nats::jetstream::new(nats);
    StreamSpec::fan_out(STREAM, ["orders.>"]).ensure(&jetstream).await?;
    Ok(())
}

/// A handler for each type of event that this service acts on.
pub fn handlers() -> Router {
    Router::new().on(confirmations::confirm)
}
