//! A service: it books its part of a trip, refuses it, or cancels it.

use pillarbox_inbox::{HandlerError, Received, Router, Tx};

use super::events::{Book, Booked, Cancel, Cancelled, Refused};
use super::trip::PATIENCE;

/// What a service does with a booking. The trip and the service decide, so that the choice is the same each time.
enum Mood {
    Books,
    Refuses,
    /// It books, and its answer comes when the saga has lost its patience.
    Hesitates,
}

fn mood(trip: &str, service: &str) -> Mood {
    let bytes = trip.bytes().chain(service.bytes());
    let chance =
        bytes.fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) >> 8;
    match chance % 16 {
        0 | 1 => Mood::Refuses,
        2 => Mood::Hesitates,
        _ => Mood::Books,
    }
}

pub(super) fn router() -> Router {
    Router::new().on(book).on(cancel)
}

async fn book(tx: &mut Tx, event: Received<Book>) -> Result<(), HandlerError> {
    let id = event.id().to_string();
    let Book { trip, service } = event.into_inner();
    // A cancellation may come first after a loss of the broker, because the lost booking is shipped again after it.
    let is_cancelled: bool = sqlx::query_scalar(
        "select exists (select from trip_effect where trip = $1 and service = $2 and what = 'cancelled')",
    )
    .bind(&trip)
    .bind(&service)
    .fetch_one(&mut **tx)
    .await?;
    let mood = mood(&trip, &service);
    let what = match mood {
        _ if is_cancelled => "declined",
        Mood::Refuses => "refused",
        Mood::Books | Mood::Hesitates => "booked",
    };
    write(tx, &service, &trip, what, &id).await?;
    match (what, mood) {
        ("booked", Mood::Hesitates) => {
            pillarbox_outbox::publish_in(tx, Booked { trip, service }, PATIENCE.mul_f32(1.2))
                .await?;
        }
        ("booked", _) => drop(pillarbox_outbox::publish(tx, Booked { trip, service }).await?),
        _ => drop(pillarbox_outbox::publish(tx, Refused { trip, service }).await?),
    }
    Ok(())
}

async fn cancel(tx: &mut Tx, event: Received<Cancel>) -> Result<(), HandlerError> {
    let id = event.id().to_string();
    let Cancel { trip, service } = event.into_inner();
    write(tx, &service, &trip, "cancelled", &id).await?;
    pillarbox_outbox::publish(tx, Cancelled { trip, service }).await?;
    Ok(())
}

async fn write(
    tx: &mut Tx,
    service: &str,
    trip: &str,
    what: &str,
    event_id: &str,
) -> Result<(), HandlerError> {
    sqlx::query("insert into trip_effect (service, trip, what, event_id) values ($1, $2, $3, $4)")
        .bind(service)
        .bind(trip)
        .bind(what)
        .bind(event_id)
        .execute(&mut **tx)
        .await?;
    Ok(())
}
