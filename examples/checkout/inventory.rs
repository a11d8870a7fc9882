//! Inventory: reserves goods for paid orders, as long as they are in stock.

use pillarbox::outbox;
use pillarbox::{HandlerError, Router, Tx};

use crate::events::{PaymentTaken, StockOut, StockReserved};

pub const TABLES: &str = "
    create table stock (
        sku       text   primary key,
        delivered bigint not null,
        remaining bigint not null
    );
    create table reservation (
        order_id bigint not null,
        sku      text   not null,
        quantity bigint not null
    );
    create table shortage (order_id bigint not null)";

pub const LISTENS_TO: &[&str] = &["payments.taken"];

pub fn router() -> Router {
    Router::new().on(reserve)
}

async fn reserve(tx: &mut Tx, paid: PaymentTaken) -> Result<(), HandlerError> {
    let PaymentTaken { order, sku, quantity } = paid;
    let taken = sqlx::query(
        "update stock set remaining = remaining - $2 where sku = $1 and remaining >= $2",
    )
    .bind(&sku)
    .bind(quantity)
    .execute(&mut **tx)
    .await?;
    if taken.rows_affected() == 0 {
        sqlx::query("insert into shortage (order_id) values ($1)")
            .bind(order)
            .execute(&mut **tx)
            .await?;
        outbox::publish(tx, StockOut { order }).await?;
        return Ok(());
    }
    sqlx::query("insert into reservation (order_id, sku, quantity) values ($1, $2, $3)")
        .bind(order)
        .bind(&sku)
        .bind(quantity)
        .execute(&mut **tx)
        .await?;
    outbox::publish(tx, StockReserved { order }).await?;
    Ok(())
}
