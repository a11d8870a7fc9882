//! Payments: charges cards, refuses orders, and refunds what could not be delivered.

use pillarbox::outbox;
use pillarbox::{HandlerError, Router, Tx};

use crate::events::{OrderPlaced, PaymentRefunded, PaymentRefused, PaymentTaken, StockOut};

/// The limit of every card: 240 EUR.
pub const CARD_LIMIT_CENTS: i64 = 24_000;

/// Nothing in this table prevents a second charge. Only the inbox does.
pub const TABLES: &str = "
    create table ledger (
        order_id bigint not null,
        kind     text   not null check (kind in ('charge', 'refund')),
        cents    bigint not null
    );
    create index ledger_order on ledger (order_id)";

pub const LISTENS_TO: &[&str] = &["orders.placed", "inventory.out"];

pub fn router() -> Router {
    Router::new().on(charge).on(refund)
}

/// The charge and its event are in one transaction, which the inbox began and will commit.
async fn charge(tx: &mut Tx, placed: OrderPlaced) -> Result<(), HandlerError> {
    let OrderPlaced { order, sku, quantity, cents, .. } = placed;
    if cents > CARD_LIMIT_CENTS {
        outbox::publish(tx, PaymentRefused { order }).await?;
        return Ok(());
    }
    sqlx::query("insert into ledger (order_id, kind, cents) values ($1, 'charge', $2)")
        .bind(order)
        .bind(cents)
        .execute(&mut **tx)
        .await?;
    outbox::publish(tx, PaymentTaken { order, sku, quantity }).await?;
    Ok(())
}

/// The compensation: the charge cannot be undone, so this step does the opposite.
async fn refund(tx: &mut Tx, out: StockOut) -> Result<(), HandlerError> {
    sqlx::query(
        "insert into ledger (order_id, kind, cents) \
         select order_id, 'refund', cents from ledger where order_id = $1 and kind = 'charge'",
    )
    .bind(out.order)
    .execute(&mut **tx)
    .await?;
    outbox::publish(tx, PaymentRefunded { order: out.order }).await?;
    Ok(())
}
