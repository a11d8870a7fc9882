//! Confirms orders.

use pillarbox::{Tx, outbox};

use crate::events::{OrderConfirmed, OrderPlaced};

/// Everything written and published through `tx` takes effect once, however often the event is delivered.
pub async fn confirm(tx: &mut Tx, placed: OrderPlaced) -> anyhow::Result<()> {
    sqlx::query("insert into confirmations (order_id) values ($1)")
        .bind(placed.order)
        .execute(&mut **tx)
        .await?;
    outbox::publish(tx, OrderConfirmed { order: placed.order }).await?;
    Ok(())
}
