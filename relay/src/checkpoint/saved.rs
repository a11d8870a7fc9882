//! Reads and writes checkpoints in the database.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::Checkpoint;
use crate::cursor::Cursor;
use crate::lease::{Lease, LeaseError};
use crate::streams::StreamMarks;

impl Lease {
    /// The newest checkpoints, at most `most`, newest first.
    pub(super) async fn checkpoints(&self, most: i64) -> Result<Vec<Checkpoint>, LeaseError> {
        let text = "select taken_at::text, cursor::text, streams::text from pillarbox.relay_checkpoint \
                    where relay = $1 order by relay_checkpoint.taken_at desc limit $2";
        let query = self.read(text).bind(most);
        let rows = self.within(async |c: &mut PgConnection| query.fetch_all(c).await).await?;
        Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
    }

    /// Saves a checkpoint, and removes those that the retention no longer needs.
    pub(super) async fn remember(
        &self,
        cursor: &Cursor,
        marks: &StreamMarks,
        retention: Duration,
    ) -> Result<(), LeaseError> {
        let query = self
            .query(include_str!("take.sql"))
            .bind(self.json(cursor)?)
            .bind(self.json(marks)?)
            .bind(i64::try_from(retention.as_secs()).unwrap_or(i64::MAX));
        self.fenced(query).await
    }

    /// Moves the cursor back to this one, which is that of the checkpoint taken then. `None`: the start of the outbox.
    pub(crate) async fn go_back(
        &self,
        cursor: &Cursor,
        taken_at: Option<&str>,
    ) -> Result<(), LeaseError> {
        let query = self
            .query(include_str!("go_back.sql"))
            .bind(self.json(cursor)?)
            .bind(taken_at.map(str::to_owned));
        self.fenced(query).await
    }
}

/// A row of `taken_at::text, cursor::text, streams::text`.
fn read(row: &PgRow) -> Result<Checkpoint, sqlx::Error> {
    let decode = |error: serde_json::Error| sqlx::Error::Decode(error.into());
    let (cursor, streams): (String, String) = (row.try_get(1)?, row.try_get(2)?);
    Ok(Checkpoint {
        taken_at: row.try_get(0)?,
        cursor: serde_json::from_str(&cursor).map_err(decode)?,
        marks: serde_json::from_str(&streams).map_err(decode)?,
    })
}
