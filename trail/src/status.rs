//! How far the trail is, for operators.

use pillarbox_store::{Schema, SchemaError};
use serde::Serialize;
use sqlx::{PgConnection, Row};

/// How far the trail has read a stream's present life.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StreamStatus {
    /// The stream.
    pub stream: String,
    /// The sequence of the last message that was recorded. 0: none was.
    pub sequence: u64,
    /// How far the stream was when it was last looked at. Messages that have left its end do not count.
    pub last_sequence: u64,
    /// How many seconds ago that was, by the database's clock. A running trail looks every few seconds.
    pub looked_seconds: f64,
    /// Why the stream could not be read then.
    pub problem: Option<String>,
}

/// Why the status cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// The schema's name cannot be used.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The database failed.
    #[error("the trail's status cannot be read")]
    Database(#[from] sqlx::Error),
}

impl StreamStatus {
    /// How many messages the trail is behind, at most: some of them may have left the stream.
    pub fn lag(&self) -> u64 {
        self.last_sequence.saturating_sub(self.sequence)
    }

    /// All streams, by name. `None`: there is no trail in this schema, or this role may not read it.
    ///
    /// # Errors
    /// [`StatusError`].
    pub async fn all(
        connection: &mut PgConnection,
        schema: &str,
    ) -> Result<Option<Vec<Self>>, StatusError> {
        let schema = Schema::parse(schema)?;
        // Not with to_regclass, which fails if the role may not use the schema.
        let readable: bool = sqlx::query_scalar(
            "select coalesce(pg_catalog.bool_or(pg_catalog.has_table_privilege(oid, 'select')), false) \
             from pg_catalog.pg_class where relname = 'trail_stream' and relnamespace = \
             (select oid from pg_catalog.pg_namespace where nspname = $1)",
        )
        .bind(schema.as_str())
        .fetch_one(&mut *connection)
        .await?;
        if !readable {
            return Ok(None);
        }
        let sql = schema.statement(
            "select distinct on (stream) stream, sequence, last_sequence, problem, \
             extract(epoch from pg_catalog.clock_timestamp() - looked_at)::float8 as looked \
             from pillarbox.trail_stream order by stream, looked_at desc, life desc",
        );
        let rows = sqlx::query(sql).fetch_all(connection).await?;
        let status = |row: &sqlx::postgres::PgRow| -> Result<Self, sqlx::Error> {
            Ok(Self {
                stream: row.try_get("stream")?,
                sequence: row.try_get::<i64, _>("sequence")?.cast_unsigned(),
                last_sequence: row.try_get::<i64, _>("last_sequence")?.cast_unsigned(),
                looked_seconds: row.try_get("looked")?,
                problem: row.try_get("problem")?,
            })
        };
        Ok(Some(rows.iter().map(status).collect::<Result<_, _>>()?))
    }
}
