//! How many events are scheduled, and how late the release is.

use pillarbox_store::schema::in_schema;
use serde::Serialize;
use sqlx::{PgConnection, Row as _};

/// The scheduled events of an outbox.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Scheduled {
    /// Events that have not left yet, with those that could not be released.
    pub pending: i64,
    /// Events that could not be released when they were due. They are tried again once a minute.
    pub held: i64,
    /// For how long the oldest of them has been due, in seconds; 0 if none is due.
    pub overdue_seconds: f64,
}

/// Counts them; `None` if the role may not. Names must be looked up in `pg_catalog` alone.
pub(crate) async fn count(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Option<Scheduled>, sqlx::Error> {
    let rights = sqlx::query(include_str!("rights.sql")).bind(schema);
    let rights = rights.fetch_one(&mut *connection).await?;
    let statement = match (rights.try_get("calls")?, rights.try_get("reads")?) {
        (true, _) => {
            "select pending, held, overdue from pillarbox.release_scheduled(null, null, 0, false, null)"
        }
        (false, true) => include_str!("count.sql"),
        (false, false) => return Ok(None),
    };
    let row = sqlx::query(in_schema(statement, schema)).fetch_one(connection).await?;
    Ok(Some(Scheduled {
        pending: row.try_get("pending")?,
        held: row.try_get("held")?,
        overdue_seconds: row.try_get::<Option<f64>, _>("overdue")?.unwrap_or(0.0),
    }))
}
