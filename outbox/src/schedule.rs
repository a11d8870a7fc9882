//! Scheduled events: written now, delivered later, or cancelled.
//!
//! ```text
//!              publish_at, publish_in                due, by the database's clock
//!  service ───────────────────────────► scheduled ────────────────────────────────► in the outbox ──► relay …
//!                                           │
//!                                           └── cancel ──► gone, never delivered
//! ```
//!
//! A scheduled event is a row of `pillarbox.outbox_scheduled`. The leading relay moves it into the outbox when it is
//! due: never before that, and normally within a few milliseconds. If no relay runs, it leaves when one does.

use std::time::{Duration, SystemTime};

use pillarbox_event::{EventId, IntoEvent};
use pillarbox_store::InTransaction;
use pillarbox_store::literal::{hex_bytes, hex_text, keeps_statements};
use sqlx::Row as _;
use uuid::Uuid;

use crate::error::OutboxError;
use crate::publish::{Outbox, another_statement, ask, not_written, uuid_literal, with_values};

/// The longest duration that an event can be scheduled ahead: 7,000 years.
pub const LONGEST: Duration = Duration::from_secs(7_000 * 365 * 86_400);
/// The first second of the year 10000, since 1970. A due time must be before it.
pub const YEAR_10000: u64 = 253_402_300_800;

/// Writes an event that is delivered at `time`, and returns its id, with which it can be [cancelled](cancel).
///
/// The event is scheduled if, and only if, `tx` commits. It leaves when the database's clock has reached `time`, and
/// never before that. A time in the past is due now. `time` may be a [`SystemTime`], or a time of the crates `time` or
/// `chrono`, and it must be before the year 10000.
///
/// Causation, correlation and trace are those of the moment at which it is scheduled, as for
/// [`publish`](crate::publish()). If you drop the future before it is done, roll the transaction back.
///
/// Events with the same key leave in the order of their due times. Nothing is promised about their order among events
/// that are published directly at the same time.
///
/// # Errors
/// [`OutboxError`]. Nothing has been written then.
pub async fn publish_at(
    tx: &mut impl InTransaction,
    event: impl IntoEvent,
    time: impl Into<SystemTime>,
) -> Result<EventId, OutboxError> {
    Outbox::new().publish_at(tx, event, time).await
}

/// Writes an event that is delivered after `duration`, counted from now by the database's clock, and returns its id.
/// Otherwise like [`publish_at`].
///
/// # Errors
/// [`OutboxError`]. Nothing has been written then. A duration of more than 7,000 years is [`OutboxError::DueTime`].
pub async fn publish_in(
    tx: &mut impl InTransaction,
    event: impl IntoEvent,
    duration: Duration,
) -> Result<EventId, OutboxError> {
    Outbox::new().publish_in(tx, event, duration).await
}

/// Cancels a scheduled event. `true`: if `tx` commits, the event is never delivered. `false`: there is no such
/// scheduled event any more. It has left and is delivered, unless it was cancelled before or never scheduled.
///
/// If the event is leaving at this moment, the call waits until it has left, which takes some milliseconds. Until `tx`
/// ends, a cancelled event does not leave; if `tx` is rolled back, it leaves when it is due. In a transaction with the
/// isolation `repeatable read` or `serializable`, Postgres may refuse the call because the event has left since the
/// transaction began; then try the whole transaction again.
///
/// If you drop the future before it is done, roll the transaction back.
///
/// # Errors
/// [`OutboxError::Id`], with the transaction untouched; [`OutboxError::NotCancelled`].
pub async fn cancel(tx: &mut impl InTransaction, id: &EventId) -> Result<bool, OutboxError> {
    Outbox::new().cancel(tx, id).await
}

impl Outbox {
    /// Schedules an event, like the function [`publish_at`].
    ///
    /// # Errors
    /// [`OutboxError`]; nothing has been written then.
    pub async fn publish_at(
        &self,
        tx: &mut impl InTransaction,
        event: impl IntoEvent,
        time: impl Into<SystemTime>,
    ) -> Result<EventId, OutboxError> {
        // Before 1970 is as past as 1970.
        let since = time.into().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() >= YEAR_10000 {
            return Err(OutboxError::DueTime { due: format!("{} s after 1970", since.as_secs()) });
        }
        self.schedule(tx, event, Some("epoch"), since).await
    }

    /// Schedules an event, like the function [`publish_in`].
    ///
    /// # Errors
    /// [`OutboxError`]; nothing has been written then.
    pub async fn publish_in(
        &self,
        tx: &mut impl InTransaction,
        event: impl IntoEvent,
        duration: Duration,
    ) -> Result<EventId, OutboxError> {
        if duration > LONGEST {
            return Err(OutboxError::DueTime { due: format!("in {} s", duration.as_secs()) });
        }
        self.schedule(tx, event, None, duration).await
    }

    /// Cancels a scheduled event, like the function [`cancel`].
    ///
    /// # Errors
    /// As for the function [`cancel`].
    pub async fn cancel(
        &self,
        tx: &mut impl InTransaction,
        id: &EventId,
    ) -> Result<bool, OutboxError> {
        let uuid = id.as_uuid().ok_or_else(|| OutboxError::Id { id: id.to_string() })?;
        let statement = self.statement(include_str!("cancel.sql"));
        let connection = tx.connection();
        let answered = if keeps_statements(connection) {
            sqlx::query(statement).bind(uuid).fetch_all(connection).await
        } else {
            let text = with_values(statement.as_str(), &[uuid_literal(uuid)]);
            sqlx::raw_sql(text).fetch_all(connection).await
        };
        let unknown = |source| OutboxError::NotCancelled { id: id.to_string(), source };
        let rows = answered.map_err(unknown)?;
        let [row] = rows.as_slice() else {
            return Err(unknown(another_statement()));
        };
        match (row.try_get::<Uuid, _>(0), row.try_get::<bool, _>(1)) {
            (Ok(of), Ok(cancelled)) if of == uuid => Ok(cancelled),
            _ => Err(unknown(another_statement())),
        }
    }

    /// Writes an event that is due `after` this time; after the moment, if there is none.
    async fn schedule(
        &self,
        tx: &mut impl InTransaction,
        event: impl IntoEvent,
        from: Option<&'static str>,
        after: Duration,
    ) -> Result<EventId, OutboxError> {
        let row = self.row(event)?;
        let statement = self.statement(include_str!("schedule.sql"));
        let after = interval(after);
        let connection = tx.connection();
        let written = if keeps_statements(connection) {
            sqlx::query_scalar(statement)
                .bind(row.id)
                .bind(row.event.event_type())
                .bind(row.event.topic())
                .bind(row.event.key())
                .bind(row.headers)
                .bind(&row.event.payload()[..])
                .bind(after)
                .bind(from)
                .fetch_all(connection)
                .await
        } else {
            let text = |text: Option<&str>| text.map_or_else(|| "null".to_owned(), hex_text);
            let values = [
                uuid_literal(row.id),
                hex_text(row.event.event_type()),
                hex_text(row.event.topic()),
                text(row.event.key()),
                hex_text(&row.headers),
                hex_bytes(row.event.payload()),
                hex_text(&after),
                text(from),
            ];
            ask(connection, statement.as_str(), &values).await
        };
        let written: Vec<Uuid> = written.map_err(|source| not_written(&row.event, source))?;
        if written != [row.id] {
            return Err(not_written(&row.event, another_statement()));
        }
        Ok(row.event.id().clone())
    }
}

/// A duration as Postgres reads it. It counts the hours in 32 bits, which is enough for 245,000 years. What is less
/// than a microsecond is rounded up, so that nothing is due too early.
fn interval(duration: Duration) -> String {
    let microseconds = duration.as_nanos().div_ceil(1_000);
    let (hours, rest) = (microseconds / 3_600_000_000, microseconds % 3_600_000_000);
    format!("{hours} hours {}.{:06} seconds", rest / 1_000_000, rest % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_exact_to_the_microsecond_and_never_shorter() {
        for (duration, text) in [
            (Duration::ZERO, "0 hours 0.000000 seconds"),
            (Duration::from_nanos(1), "0 hours 0.000001 seconds"),
            (Duration::from_micros(3_600_000_001), "1 hours 0.000001 seconds"),
            (Duration::from_millis(3_599_999), "0 hours 3599.999000 seconds"),
            (LONGEST, "61320000 hours 0.000000 seconds"),
        ] {
            assert_eq!(interval(duration), text);
        }
    }
}
