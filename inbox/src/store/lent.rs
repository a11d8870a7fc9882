//! Connections that do not answer any more, and how the pool gets rid of them.
//!
//! A connection can swallow what is sent over it, and no error says so. So each statement of the inbox's own has a
//! [limit](LONGEST) on this side. The wait for a connection is not part of it: the pool bounds that by its
//! `acquire_timeout`.
//!
//! A connection that was silent must not go back to the pool. The pool asks a connection that comes back whether it is
//! well, and waits for the answer without a limit: such a connection would keep its place in the pool for good. So:
//!
//! - a statement outside of a handler's transaction runs over a [`Lent`] connection, which is closed unless the statement
//!   has ended;
//! - a transaction cannot be taken out of sqlx's hands. So [`let_go`] exchanges its connection for one that the server has
//!   just ended. The silent one is closed with that, and the pool throws the ended one away.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use pillarbox_store::limit::limited;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgQueryResult, PgRow};
use sqlx::{ConnectOptions, Execute, Executor, PgConnection, PgPool, Postgres};
use tokio::time::sleep;

use crate::tx::Tx;

/// How long a statement of the inbox's own may take, once it has its connection.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);

/// How long it may take to make a connection and have the server end it.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often that is tried, and how long between two tries.
const EXCHANGE_TRIES: u32 = 12;
const EXCHANGE_PAUSE: Duration = Duration::from_secs(5);

const END_ITSELF: &str = "select pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())";

/// A connection of the pool, for statements of the inbox's own. Closed when it is dropped, unless the
/// database has answered the statement that it ran.
#[derive(Debug)]
pub struct Lent {
    connection: PoolConnection<Postgres>,
    answered: bool,
}

impl Lent {
    pub(crate) async fn from(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Ok(Self { connection: pool.acquire().await?, answered: false })
    }

    /// Back to the pool, if it has answered, be it by an error of the database.
    pub(crate) fn give_back<T>(mut self, answer: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        self.answered = !matches!(answer, Err(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)));
        answer
    }

    /// Runs one statement, and gives the connection back.
    pub async fn execute<'q>(
        mut self,
        statement: impl Execute<'q, Postgres> + 'q,
    ) -> Result<PgQueryResult, sqlx::Error> {
        let done = limited(LONGEST, self.connection.execute(statement)).await;
        self.give_back(done)
    }

    /// The one row of a statement; gives the connection back.
    pub async fn fetch_one<'q>(
        mut self,
        statement: impl Execute<'q, Postgres> + 'q,
    ) -> Result<PgRow, sqlx::Error> {
        let row = limited(LONGEST, self.connection.fetch_one(statement)).await;
        self.give_back(row)
    }

    /// The rows of a statement; gives the connection back.
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
        if !self.answered {
            self.connection.close_on_drop();
        }
    }
}

/// Gets the pool rid of a transaction whose connection is silent, without waiting for it.
pub(crate) fn let_go(mut silent: Tx, options: Arc<PgConnectOptions>) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    runtime.spawn(async move {
        for _ in 0..EXCHANGE_TRIES {
            match limited(EXCHANGE_TIMEOUT, ended(&options)).await {
                Ok(ended) => {
                    *silent = ended;
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "a silent connection keeps its place in the pool for now");
                    sleep(EXCHANGE_PAUSE).await;
                }
            }
        }
    });
}

/// A connection that the server has ended.
async fn ended(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let mut connection = options.connect().await?;
    // Its answer is that the connection ends.
    let _ = sqlx::raw_sql(END_ITSELF).execute(&mut connection).await;
    Ok(connection)
}
