//! A provider: it books, refuses and cancels. Commands for one trip come in their order, so a cancellation finds what
//! was booked before it.

use std::time::Duration;

use pillarbox::{HandlerError, Router, Tx, outbox};

use crate::events::{Book, Booked, Cancel, Cancelled, Refused};
use crate::trip::PATIENCE;

/// Nothing in this table prevents a second booking. Only the inbox does.
pub const TABLES: &str = "
    create table ledger (
        trip  bigint not null,
        kind  text   not null check (kind in ('book', 'cancel')),
        cents bigint not null
    );
    create index ledger_trip on ledger (trip);
    -- Whether the provider can be reached.
    create table provider (away boolean not null);
    insert into provider values (false)";

/// Which trips a provider refuses.
pub fn refuses(provider: &str, trip: i64) -> bool {
    matches!((provider, trip % 10), ("hotel", 3) | ("car", 5) | ("payment", 7))
}

/// Which trips a provider answers only after the saga's patience has ended.
pub fn answers_late(provider: &str, trip: i64) -> bool {
    provider == "hotel" && trip % 10 == 9
}

pub fn router() -> Router {
    Router::new().on(book).on(cancel)
}

async fn book(tx: &mut Tx, book: Book) -> Result<(), HandlerError> {
    let Book { trip, provider, cents } = book;
    if sqlx::query_scalar("select away from provider").fetch_one(&mut **tx).await? {
        return Err(
            HandlerError::outage("the provider is away").retry_after(Duration::from_millis(200))
        );
    }
    if refuses(&provider, trip) {
        outbox::publish(tx, Refused { trip, provider }).await?;
        return Ok(());
    }
    sqlx::query("insert into ledger (trip, kind, cents) values ($1, 'book', $2)")
        .bind(trip)
        .bind(cents)
        .execute(&mut **tx)
        .await?;
    let is_late = answers_late(&provider, trip);
    let booked = Booked { trip, provider };
    if is_late {
        outbox::publish_in(tx, booked, 2 * PATIENCE).await?;
    } else {
        outbox::publish(tx, booked).await?;
    }
    Ok(())
}

/// Takes "there is nothing to cancel" for done.
async fn cancel(tx: &mut Tx, Cancel { trip, provider }: Cancel) -> Result<(), HandlerError> {
    sqlx::query("insert into ledger (trip, kind, cents) select trip, 'cancel', cents from ledger where trip = $1 and kind = 'book'")
        .bind(trip)
        .execute(&mut **tx)
        .await?;
    outbox::publish(tx, Cancelled { trip, provider }).await?;
    Ok(())
}
