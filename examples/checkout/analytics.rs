//! Analytics: counts all events, of every type, many in one transaction.

use pillarbox::event::RawEvent;
use pillarbox::{HandlerError, Received, Tx};

pub const TABLES: &str = "
    create table counter (
        event_type text   primary key,
        events     bigint not null
    )";

pub const LISTENS_TO: &[&str] = &["orders.>", "payments.>", "inventory.>"];

/// One statement for all of them, in the order of the types, so that two batches wait for each other and do not
/// deadlock.
pub async fn count(tx: &mut Tx, events: &[Received<RawEvent>]) -> Result<(), HandlerError> {
    let types: Vec<&str> = events.iter().map(|event| event.event_type()).collect();
    sqlx::query(
        "insert into counter (event_type, events) \
         select event_type, count(*) from unnest($1::text[]) as event_type group by event_type order by event_type \
         on conflict (event_type) do update set events = counter.events + excluded.events",
    )
    .bind(types)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
