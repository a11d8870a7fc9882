//! What a consumer has failed to handle so far.

use sqlx::Row;

use crate::store::statements::Store;

/// What a consumer has failed to handle, or given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unhandled {
    /// Events that failed and are tried again.
    pub failing: u64,
    /// The one of them that has failed for the longest: its id and its last error.
    pub failure: Option<String>,
    /// Events that wait in the database: they were retried, or an earlier event of their key fails or is a dead letter.
    pub parked: u64,
    /// Dead letters that nobody has retried or discarded.
    pub dead: u64,
    /// The first of them: its id, its type, the reason and the error.
    pub letter: Option<String>,
}

impl Store {
    /// Asks what this consumer has failed to handle so far.
    ///
    /// # Errors
    /// The error of sqlx.
    pub async fn unhandled(&self) -> Result<Unhandled, sqlx::Error> {
        let unhandled = self.schema.statement(include_str!("unhandled.sql"));
        let row = self.lend().await?.fetch_one(self.query(&unhandled)).await?;
        let count = |name: &str| row.try_get::<i64, _>(name).map(i64::unsigned_abs);
        Ok(Unhandled {
            failing: count("failing")?,
            failure: row.try_get("failure")?,
            parked: count("parked")?,
            dead: count("dead")?,
            letter: row.try_get("letter")?,
        })
    }
}
