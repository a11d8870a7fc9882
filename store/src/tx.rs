//! The transaction of a handler.
//!
//! It is not sqlx's, because that one cannot get rid of a connection that does not answer any more. A connection can
//! swallow what is sent over it, and no error says so. When it goes back to its pool, the pool asks whether it is well,
//! and waits for the answer without a limit: the connection keeps its place in the pool until TCP gives up, after a
//! quarter of an hour. That happens also when a future is dropped in the middle of a statement. So here the way back
//! has a limit, and a connection that was silent is closed at once.
//!
//! # Statements that travel with the commit
//! An event that a transaction publishes is one more round trip that its writer waits for. So a [`Tx`] can
//! [collect](Tx::send_with_commit) statements, and sends them together with its commit. Whoever commits, this module or
//! the inbox, sends them in one message with the commit, which Postgres ends at the first error: if one of them fails,
//! nothing is committed.
//!
//! They are sent as text, without parameters and without a name. Behind a pooler in transaction mode this is as safe as
//! elsewhere, because no statement of another client can run instead.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgTransactionManager;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, SqlStr, Transaction};
use sqlx_core::transaction::TransactionManager;
use tokio::time::timeout;

use crate::limit::limited;

/// How long a connection may take to begin a transaction, and to come to rest on its way back to the pool.
const LONGEST: Duration = Duration::from_secs(10);

/// Stands for collected statements while they are sent, and afterwards if that failed or was interrupted. It fails, so
/// that a transaction from which they may be missing does not commit.
const NOT_SENT: &str = "select 'statements that were to travel with the commit may be missing, because sending them failed \
                        or was interrupted; roll back'::pg_catalog.int4;\n";

/// An open transaction over a connection of a pool: a handler writes in it, and publishes in it.
///
/// Queries go to `&mut **tx`, which is the [`PgConnection`]. A savepoint is [`savepoint`](Self::savepoint), or
/// `tx.begin()` of sqlx's `Connection` or `Acquire`. Whoever began the transaction ends it: a handler has no commit,
/// and one that ends the transaction by SQL is found out. A service that began it by [`open`](Self::open) ends it by
/// [`commit`](Self::commit).
///
/// When it is dropped, the transaction is rolled back in the background, and the connection goes back to its pool. A
/// connection that does not answer within 10 s is closed instead.
pub struct Tx {
    connection: PoolConnection<Postgres>,
    /// Whether it is of no more use.
    is_silent: bool,
    /// The statements that are sent with the commit, each with its semicolon.
    with_commit: String,
}

impl Tx {
    /// Begins a transaction with this statement, which may be several, over a connection of the pool.
    ///
    /// The pool bounds the wait for a connection by its `acquire_timeout`. A connection that does not begin within 10 s
    /// is closed. It is closed, too, if the future is dropped before the end.
    ///
    /// # Errors
    /// Those of sqlx.
    pub async fn begin(pool: &PgPool, statement: SqlStr) -> Result<Self, sqlx::Error> {
        let connection = pool.acquire().await?;
        let mut tx = Self { connection, is_silent: true, with_commit: String::new() };
        let begun = PgTransactionManager::begin(&mut tx.connection, Some(statement));
        let begun = limited(LONGEST, begun).await;
        tx.is_silent = matches!(begun, Err(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)));
        begun.map(|()| tx)
    }

    /// Begins a transaction over a connection of the pool, for a service to end it by [`commit`](Self::commit).
    ///
    /// Use it instead of `pool.begin()` where a transaction publishes events that are to travel with its commit.
    ///
    /// # Errors
    /// Those of sqlx. See [`begin`](Self::begin) for limits and cancellation.
    pub async fn open(pool: &PgPool) -> Result<Self, sqlx::Error> {
        Self::begin(pool, SqlStr::from_static("begin")).await
    }

    /// Commits, together with what was [collected](Self::send_with_commit), in one round trip.
    ///
    /// # Errors
    /// Those of sqlx. If a collected statement fails, or any statement before has failed, nothing is committed. The
    /// same holds if the transaction was ended by SQL before, and not begun again: what was collected does not outlive
    /// it. If the database does not answer within 10 s, or if the future is dropped, the connection is closed, and it
    /// is not known whether the transaction is committed.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        // In a transaction that has failed, a plain commit would roll back and succeed. Outside of a transaction, a
        // plain one would commit what was collected, and "and chain" fails. The new transaction is for sqlx, which does
        // not know of this commit, and sends a rollback when the connection returns to its pool.
        let text = format!("select 1; {}commit and chain", self.take_collected());
        self.is_silent = true;
        let commit = sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *self.connection);
        let committed = limited(LONGEST, commit).await;
        self.is_silent = matches!(committed, Err(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)));
        committed.map(drop)
    }

    /// Rolls back, and forgets what was collected. Dropping it does the same in the background.
    pub fn roll_back(self) {}

    /// Collects a statement that is sent together with the commit, behind those that were collected before. It must be
    /// a whole statement as text, without a semicolon at its end and without parameters: see
    /// [`literal`](crate::literal).
    pub fn send_with_commit(&mut self, statement: &str) {
        self.with_commit.push_str(statement);
        self.with_commit.push_str(";\n");
    }

    /// How many bytes of statements are collected.
    pub fn collected_bytes(&self) -> usize {
        self.with_commit.len()
    }

    /// Takes what was collected, for whoever commits: statements that each end with a semicolon.
    pub fn take_collected(&mut self) -> String {
        std::mem::take(&mut self.with_commit)
    }

    /// Sends what was collected now, in a round trip of its own. Nothing is sent if nothing was collected.
    ///
    /// If the future is dropped before its end, the transaction can no longer commit. Only a [`Savepoint`] that was set
    /// before can still be rolled back.
    ///
    /// # Errors
    /// Those of sqlx. The transaction has failed then, and can no longer commit, as if the future had been dropped.
    pub async fn send_collected(&mut self) -> Result<(), sqlx::Error> {
        if self.with_commit.is_empty() {
            return Ok(());
        }
        let text = std::mem::replace(&mut self.with_commit, NOT_SENT.to_owned());
        sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut *self.connection).await?;
        self.with_commit.clear();
        Ok(())
    }

    /// Sets a savepoint. Unless it is [released](Savepoint::release), what happens in it is undone, and the events that
    /// were published in it are not published, however they were.
    ///
    /// What was collected before is sent first, so that it is not undone.
    ///
    /// # Errors
    /// Those of sqlx.
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_>, sqlx::Error> {
        self.send_collected().await?;
        PgTransactionManager::begin(&mut self.connection, None).await?;
        Ok(Savepoint { tx: self, is_open: true })
    }

    /// Closes the connection, which did not answer in time. What became of the transaction is not known.
    pub fn abandon(mut self) {
        self.is_silent = true;
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        PgTransactionManager::start_rollback(&mut self.connection);
        return_to_pool(&mut self.connection, self.is_silent);
    }
}

/// A savepoint of a [`Tx`], which it dereferences to. Dropping it rolls back to it.
#[derive(Debug)]
pub struct Savepoint<'t> {
    tx: &'t mut Tx,
    is_open: bool,
}

impl Savepoint<'_> {
    /// Keeps what happened since, as far as the transaction commits.
    ///
    /// # Errors
    /// Those of sqlx. What happened since is undone then.
    pub async fn release(mut self) -> Result<(), sqlx::Error> {
        PgTransactionManager::commit(&mut self.tx.connection).await?;
        self.is_open = false;
        Ok(())
    }

    /// Undoes what happened since, and forgets what was collected since.
    ///
    /// # Errors
    /// Those of sqlx.
    pub async fn roll_back(mut self) -> Result<(), sqlx::Error> {
        self.tx.take_collected();
        PgTransactionManager::rollback(&mut self.tx.connection).await?;
        self.is_open = false;
        Ok(())
    }
}

impl Drop for Savepoint<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.tx.take_collected();
            PgTransactionManager::start_rollback(&mut self.tx.connection);
        }
    }
}

impl Deref for Savepoint<'_> {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        self.tx
    }
}

impl DerefMut for Savepoint<'_> {
    fn deref_mut(&mut self) -> &mut Tx {
        self.tx
    }
}

/// Gives a connection that is about to be dropped back to its pool, or closes it: at once if it `is_silent`, or when it
/// has not come to rest within 10 s. Its place in the pool is free again in either case.
pub fn return_to_pool(connection: &mut PoolConnection<Postgres>, is_silent: bool) {
    // Where this is dropped, the connection is closed.
    let back = connection.return_to_pool();
    if let (false, Ok(runtime)) = (is_silent, tokio::runtime::Handle::try_current()) {
        runtime.spawn(timeout(LONGEST, back));
    }
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").finish_non_exhaustive()
    }
}

/// A transaction that events are published in: a handler's [`Tx`], or sqlx's. A bare connection is none.
#[diagnostic::on_unimplemented(
    message = "an event is published in a transaction, and `{Self}` is none",
    note = "pass the handler's `tx`, or `&mut` of a transaction that `pool.begin()` gave",
    note = "if it is a transaction of sqlx, the service has another version of it: Pillarbox takes those of sqlx 0.9; for \
            other clients, see `Outbox::row`"
)]
pub trait InTransaction: Send {
    /// The connection, inside the transaction.
    fn connection(&mut self) -> &mut PgConnection;

    /// The transaction, if it can collect statements that travel with its commit. By default, it cannot.
    fn collects(&mut self) -> Option<&mut Tx> {
        None
    }
}

impl InTransaction for Tx {
    fn connection(&mut self) -> &mut PgConnection {
        self
    }

    fn collects(&mut self) -> Option<&mut Tx> {
        Some(self)
    }
}

impl InTransaction for Savepoint<'_> {
    fn connection(&mut self) -> &mut PgConnection {
        self.tx
    }

    fn collects(&mut self) -> Option<&mut Tx> {
        Some(self.tx)
    }
}

impl InTransaction for Transaction<'_, Postgres> {
    fn connection(&mut self) -> &mut PgConnection {
        self
    }
}
