//! Connections for statements of the inbox itself.
//!
//! A connection can lose everything that is sent over it, without an error. So each statement of the inbox itself has a
//! [limit](LONGEST) on the client's side. The wait for a connection is not part of it; the pool limits that by its
//! `acquire_timeout`.
//!
//! A connection that was silent must not return to the pool: see [`pillarbox_store::tx`]. So a statement outside of a
//! handler's transaction runs over a [`Lent`] connection, which is closed unless the statement has ended.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use pillarbox_store::limit::limited;
use pillarbox_store::tx::return_to_pool;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgQueryResult, PgRow};
use sqlx::{Execute, Executor, PgConnection, PgPool, Postgres};

/// The time limit for a statement of the inbox itself, once it has its connection.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);

/// A connection of the pool for statements of the inbox itself. Dropping it closes the connection, unless the database
/// has answered the statement.
#[derive(Debug)]
pub struct Lent {
    connection: PoolConnection<Postgres>,
    answered: bool,
}

impl Lent {
    pub(crate) async fn from(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self { connection: pool.acquire().await?, answered: false })
    }

    /// Returns the connection to the pool if the database has answered, even with an error.
    pub(crate) fn give_back<T>(mut self, answer: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        self.answered = !matches!(answer, Err(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)));
        answer
    }

    /// Runs one statement, and returns the connection to the pool.
    pub async fn execute<'q>(
        mut self,
        statement: impl Execute<'q, Postgres> + 'q,
    ) -> Result<PgQueryResult, sqlx::Error> {
        let done = limited(LONGEST, self.connection.execute(statement)).await;
        self.give_back(done)
    }

    /// Fetches the one row of a statement, and returns the connection to the pool.
    pub async fn fetch_one<'q>(
        mut self,
        statement: impl Execute<'q, Postgres> + 'q,
    ) -> Result<PgRow, sqlx::Error> {
        let row = limited(LONGEST, self.connection.fetch_one(statement)).await;
        self.give_back(row)
    }

    /// Fetches the rows of a statement, and returns the connection to the pool.
    pub async fn fetch_all<'q>(
        mut self,
        statement: impl Execute<'q, Postgres> + 'q,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let rows = limited(LONGEST, self.connection.fetch_all(statement)).await;
        self.give_back(rows)
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        return_to_pool(&mut self.connection, !self.answered);
    }
}
