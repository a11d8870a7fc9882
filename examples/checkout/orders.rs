//! Orders: places orders, and records how they end.

use pillarbox::outbox;
use pillarbox::{HandlerError, Router, Tx};
use sqlx::{PgPool, PgTransaction};

use crate::events::{
    OrderCompleted, OrderFailed, OrderPlaced, PaymentRefunded, PaymentRefused, StockReserved,
};

pub const TABLES: &str = "
    create table orders (
        id       bigint primary key,
        customer text   not null,
        sku      text   not null,
        quantity bigint not null,
        cents    bigint not null,
        state    text   not null default 'placed' check (state in ('placed', 'completed', 'failed')),
        reason   text   null
    )";

pub const LISTENS_TO: &[&str] = &["payments.refused", "payments.refunded", "inventory.reserved"];

/// Places an order: the row and its event, or neither.
pub async fn place(pool: &PgPool, order: &OrderPlaced) -> anyhow::Result<()> {
    let mut tx = pool.begin().await?;
    write_down(&mut tx, order).await?;
    tx.commit().await?;
    Ok(())
}

/// The same for a customer who changes their mind at the last moment. Nobody must ever hear of this order.
pub async fn place_and_roll_back(pool: &PgPool, order: &OrderPlaced) -> anyhow::Result<()> {
    let mut tx = pool.begin().await?;
    write_down(&mut tx, order).await?;
    tx.rollback().await?;
    Ok(())
}

async fn write_down(tx: &mut PgTransaction<'_>, order: &OrderPlaced) -> anyhow::Result<()> {
    sqlx::query(
        "insert into orders (id, customer, sku, quantity, cents) values ($1, $2, $3, $4, $5)",
    )
    .bind(order.order)
    .bind(&order.customer)
    .bind(&order.sku)
    .bind(order.quantity)
    .bind(order.cents)
    .execute(&mut **tx)
    .await?;
    outbox::publish(tx, order).await?;
    Ok(())
}

pub fn router() -> Router {
    Router::new().on(payment_refused).on(payment_refunded).on(stock_reserved)
}

async fn stock_reserved(tx: &mut Tx, reserved: StockReserved) -> Result<(), HandlerError> {
    let order = reserved.order;
    let customer = close(tx, order, "completed", None).await?;
    outbox::publish(tx, OrderCompleted { order, customer }).await?;
    Ok(())
}

async fn payment_refused(tx: &mut Tx, refused: PaymentRefused) -> Result<(), HandlerError> {
    fail(tx, refused.order, "payment refused").await
}

async fn payment_refunded(tx: &mut Tx, refunded: PaymentRefunded) -> Result<(), HandlerError> {
    fail(tx, refunded.order, "out of stock").await
}

async fn fail(tx: &mut Tx, order: i64, reason: &str) -> Result<(), HandlerError> {
    let customer = close(tx, order, "failed", Some(reason)).await?;
    outbox::publish(tx, OrderFailed { order, customer, reason: reason.to_owned() }).await?;
    Ok(())
}

/// Gives an order its final state, and returns the customer.
async fn close(
    tx: &mut Tx,
    order: i64,
    state: &str,
    reason: Option<&str>,
) -> Result<String, HandlerError> {
    let customer = sqlx::query_scalar(
        "update orders set state = $2, reason = $3 where id = $1 and state = 'placed' returning customer",
    )
    .bind(order)
    .bind(state)
    .bind(reason)
    .fetch_optional(&mut **tx)
    .await?;
    // A retry would not help, so make it a dead letter at once, for somebody to look at.
    customer.ok_or_else(|| HandlerError::permanent(format!("order {order} is not an open one")))
}
