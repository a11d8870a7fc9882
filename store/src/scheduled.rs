//! What an operator sees and does of the events that are scheduled for later.

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use crate::actions::{Deed, Operator, record};
use crate::schema::Schema;

/// A scheduled event, without its content, which the operator's role may not read.
#[derive(Clone, Debug, Serialize)]
pub struct Scheduled {
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// The topic.
    pub topic: String,
    /// When it is due, in UTC.
    pub due_at: String,
    /// In how many seconds it is due. Below 0: it is due already.
    pub due_in_seconds: f64,
    /// When it was scheduled, in UTC.
    pub created_at: String,
    /// Why it could not be released when it was due.
    pub error: Option<String>,
}

/// Which scheduled events. A field that is `None` matches all.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// The topic, in full.
    pub topic: Option<String>,
    /// The event's type, in full.
    pub event_type: Option<String>,
    /// Only those that could not be released when they were due.
    pub held: bool,
    /// The event's id.
    pub event_id: Option<Uuid>,
}

impl Which {
    /// Lists them, the next one first, at most `most`.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn list(
        self,
        connection: &mut PgConnection,
        schema: &Schema,
        most: i64,
    ) -> Result<Vec<Scheduled>, sqlx::Error> {
        let rows = sqlx::query(schema.statement(include_str!("scheduled/list.sql")))
            .bind(self.topic)
            .bind(self.event_type)
            .bind(self.held)
            .bind(most)
            .bind(self.event_id.map(|id| id.to_string()))
            .fetch_all(connection)
            .await?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &PgRow) -> Result<Scheduled, sqlx::Error> {
    Ok(Scheduled {
        event_id: row.try_get("event_id")?,
        event_type: row.try_get("event_type")?,
        topic: row.try_get("topic")?,
        due_at: row.try_get("due_at")?,
        due_in_seconds: row.try_get("due_in_seconds")?,
        created_at: row.try_get("created_at")?,
        error: row.try_get("error")?,
    })
}

/// Cancels a scheduled event, and records who did it, in one transaction. Returns `false` if there is no such event: it
/// has left, was cancelled, or never was.
///
/// # Errors
/// The error of sqlx. The event is then still scheduled.
pub async fn cancel(
    connection: &mut PgConnection,
    schema: &Schema,
    event_id: &str,
    operator: &Operator,
) -> Result<bool, sqlx::Error> {
    let mut tx = connection.begin().await?;
    let removed = sqlx::query(schema.statement(
        "delete from pillarbox.outbox_scheduled where event_id = $1::text::uuid returning event_id",
    ))
    .persistent(false)
    .bind(event_id)
    .fetch_optional(&mut *tx)
    .await?
    .is_some();
    if removed {
        let deed = Deed { what: "scheduled.cancel", target: event_id, count: 1, letters: &[] };
        record(&mut tx, schema, operator, &deed).await?;
    }
    tx.commit().await?;
    Ok(removed)
}
