//! Analytics: counts everything that is said, whatever it is.

use pillarbox::event::RawEvent;
use pillarbox::inbox::{HandlerError, Router, Tx, handler_fn};

/// Sixteen rows for each type of event, so that handlers seldom wait for one another.
pub const TABLES: &str = "
    create table counter (
        event_type text   not null,
        shard      int    not null,
        events     bigint not null,
        primary key (event_type, shard)
    )";

pub const LISTENS_TO: &[&str] = &["orders.>", "payments.>", "inventory.>"];

pub fn router() -> Router {
    Router::new().on(handler_fn(count))
}

async fn count(tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
    sqlx::query(
        "insert into counter (event_type, shard, events) values ($1, floor(random() * 16), 1) \
         on conflict (event_type, shard) do update set events = counter.events + 1",
    )
    .bind(event.event_type())
    .execute(&mut **tx)
    .await?;
    Ok(())
}
