//! Notifications: mails the customer how an order ended. A table plays the mailbox.
//!
//! A real mail cannot join the transaction. The handler would pass an idempotency key to the mail provider: a handler
//! that takes `Received<OrderCompleted>` gets it from `idempotency_key()`.

use pillarbox::{HandlerError, Router, Tx};

use crate::events::{OrderCompleted, OrderFailed};

pub const TABLES: &str = "
    create table mailbox (
        order_id bigint not null,
        customer text   not null,
        subject  text   not null
    )";

pub const LISTENS_TO: &[&str] = &["orders.completed", "orders.failed"];

pub fn router() -> Router {
    Router::new().on(completed).on(failed)
}

async fn completed(tx: &mut Tx, event: OrderCompleted) -> Result<(), HandlerError> {
    mail(tx, event.order, &event.customer, "Your order is on its way").await
}

async fn failed(tx: &mut Tx, event: OrderFailed) -> Result<(), HandlerError> {
    let subject = format!("We are sorry: {}", event.reason);
    mail(tx, event.order, &event.customer, &subject).await
}

async fn mail(tx: &mut Tx, order: i64, customer: &str, subject: &str) -> Result<(), HandlerError> {
    sqlx::query("insert into mailbox (order_id, customer, subject) values ($1, $2, $3)")
        .bind(order)
        .bind(customer)
        .bind(subject)
        .execute(&mut **tx)
        .await?;
    Ok(())
}
