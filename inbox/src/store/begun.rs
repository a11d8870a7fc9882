//! The inbox's transactions. At its end, each one is proved to be the one that was begun, and its session is left as it
//! was found.
//!
//! A handler has the whole connection, and may end the transaction that it was given: by `rollback`, by `commit and
//! chain`, by `prepare transaction`. If the inbox then committed, it would acknowledge the event without its row, or
//! with half of its effects. So the claim returns the transaction's id (`pg_current_xact_id()`). The commit is sent in
//! one message after a statement that fails in any other transaction, and outside of transactions. A savepoint of the
//! inbox would prove the same, but would cost each event one more transaction id.
//!
//! A handler that ended its transaction may also fail. What it wrote before the end is undone or committed. What it
//! wrote after a rollback, outside of a transaction or in one of its own, stays, and would be written again with every
//! attempt. So a rollback first asks which transaction it ends. If a statement has failed, the transaction cannot be
//! asked. It is then assumed to be the one that was begun, because handlers mostly fail by a failed statement. This
//! misses handlers that rolled back, wrote, began another transaction and failed in it: they are tried `max_attempts`
//! times. (No mark survives a failed statement, because settings are reset with it, even after `rollback and chain`. A
//! savepoint would survive, for one more transaction id with each event.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use pillarbox_store::limit::{limited, within};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};
use tokio::time::timeout;

use crate::error::{ENDED, InboxError};
use crate::store::lent::LONGEST;
use crate::store::session::{Session, Sessions};
use crate::tx::Tx;

/// The time limit for getting a connection from the pool and opening a transaction. A shared pool may have no free
/// connection for a while.
pub(crate) const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Postgres's error code for a statement that needs a transaction, outside of one.
const NO_TRANSACTION: &str = "25P01";

/// Postgres's error code in a transaction in which a statement has failed.
const ABORTED: &str = "25P02";

/// How long an event's failure waits until it is known what became of its transaction.
const FATE_TIMEOUT: Duration = Duration::from_secs(1);

/// An open transaction, and the time since its connection left the pool.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) tx: Tx,
    pub(crate) taken_at: Instant,
    /// The statement_timeout of this connection's transactions in milliseconds, if known. Asking for it in each
    /// transaction would cost as much as the claim.
    pub(crate) limit: Option<u64>,
    /// Set before a handler gets the transaction.
    pub(crate) mark: Option<TransactionMark>,
}

/// Identifies a transaction, and holds what its session was like before.
#[derive(Clone, Debug)]
pub(crate) struct TransactionMark {
    transaction: u64,
    session: Arc<Session>,
}

/// What became of a transaction that should be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing of it is left. If the connection was lost, this is assumed.
    Undone,
    /// The handler had committed it.
    Committed,
    /// The handler had rolled it back. What it wrote afterwards may have been kept.
    RolledBack,
    /// The handler had prepared it for two-phase commit. The inbox has rolled it back.
    Prepared,
}

impl Fate {
    /// The error for the event if the handler had ended the transaction. It replaces the handler's own error.
    pub(crate) fn ended(self) -> Option<InboxError> {
        match self {
            Self::Undone => None,
            Self::Committed => Some(InboxError::Ended { committed: true }),
            Self::RolledBack | Self::Prepared => Some(InboxError::Ended { committed: false }),
        }
    }
}

impl TransactionMark {
    /// A statement that fails in any other transaction than this one.
    ///
    /// It also fails in an aborted transaction. There, a plain `commit` would roll back and *succeed*, so the event of
    /// a handler that ignores a failed insert would be acknowledged although nothing was written.
    fn proof(&self) -> String {
        let same = self.is_same();
        format!(
            "select case when {same} then 1 else pg_catalog.current_setting('{ENDED}')::integer end; "
        )
    }

    /// An expression: whether a statement runs in this transaction. Null outside of transactions.
    fn is_same(&self) -> String {
        format!(
            "pg_catalog.pg_current_xact_id_if_assigned() operator(pg_catalog.=) '{}'::pg_catalog.xid8",
            self.transaction
        )
    }
}

impl Begun {
    pub(crate) fn new(tx: Tx) -> Self {
        Self { tx, taken_at: Instant::now(), limit: None, mark: None }
    }

    /// Closes the connection, because it did not answer in time. What became of the transaction is not known.
    pub(crate) fn abandon(self) {
        self.tx.abandon();
    }

    /// Rolls back a transaction that no handler had.
    #[cfg(feature = "http")]
    pub(crate) async fn roll_back(mut self) {
        // A begin follows, because sqlx believes that a transaction is open.
        if let Err(error) = self.ask("rollback; begin".into()).await {
            tracing::debug!(%error, "a transaction was not rolled back by its owner");
            self.abandon();
        }
    }

    /// Sends statements of the inbox itself, within the [limit](LONGEST).
    async fn ask(&mut self, text: String) -> Result<Vec<PgRow>, sqlx::Error> {
        limited(LONGEST, sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(&mut *self.tx)).await
    }

    /// Remembers the transaction's id and its backend, as the database reported them.
    pub(crate) async fn mark(
        &mut self,
        sessions: &Sessions,
        transaction: &str,
        backend: i32,
        own_lock: Option<i64>,
    ) -> Result<(), sqlx::Error> {
        let transaction = transaction.parse().map_err(|_| unexpected("the id of a transaction"))?;
        let session = sessions.of(backend, &mut self.tx, own_lock).await?;
        self.mark = Some(TransactionMark { transaction, session });
        Ok(())
    }

    /// Runs a statement of the inbox itself after the handler, if the transaction is the one that was begun. It runs
    /// with the role and the settings from before the handler. What the transaction has collected is sent with it.
    pub(crate) async fn settle(&mut self) -> Result<(), sqlx::Error> {
        let Some(mark) = &self.mark else { return self.tx.send_collected().await };
        let collected = self.tx.take_collected();
        let text = format!("{}{}{collected}", mark.proof(), mark.session.settle());
        self.ask(text).await.map(drop)
    }

    /// Runs `sql` after the handler, if the transaction is the one that was begun.
    pub(crate) async fn prove_and(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        let proof = self.mark.as_ref().map(TransactionMark::proof).unwrap_or_default();
        self.ask(format!("{proof}{sql}")).await.map(drop)
    }

    /// Rolls back to a savepoint, and releases it. What was collected since is forgotten.
    pub(crate) async fn undo_part(&mut self, savepoint: &str) -> Result<(), InboxError> {
        self.tx.take_collected();
        let proof = self.mark.as_ref().map(TransactionMark::proof).unwrap_or_default();
        let text =
            format!("rollback to savepoint {savepoint}; {proof}release savepoint {savepoint}");
        self.ask(text).await.map(drop).map_err(|error| {
            let code = error.as_database_error().and_then(|error| error.code());
            match code.as_deref() {
                // There is no transaction, or it has no such savepoint.
                Some(NO_TRANSACTION | "3B001") => InboxError::Ended { committed: false },
                Some("42704") => InboxError::commit(error),
                _ => InboxError::database("roll back to a savepoint")(error),
            }
        })
    }

    /// Commits the transaction that was begun, or returns that it did not. All in one round trip, with what the
    /// transaction has collected and `last` before the commit. `last` ends with a semicolon or is empty.
    ///
    /// `stays`: the connection is used again without going through the pool. Otherwise a `begin` follows for sqlx,
    /// which does not know of the commit and sends a rollback when the connection returns to the pool.
    ///
    /// If the connection is silent after the commit, it is closed. If it is silent before the answer to the commit, it
    /// is not known whether the transaction is committed.
    pub(crate) async fn commit(
        mut self,
        last: &str,
        stays: bool,
    ) -> Result<Option<Self>, InboxError> {
        let last = format!("{}{last}", self.tx.take_collected());
        let text = match &self.mark {
            Some(mark) => {
                let (proof, session) = (mark.proof(), &mark.session);
                let (settle, clear) = (session.settle(), session.clear());
                if stays {
                    format!("{proof}{settle}{last}commit; {clear}")
                } else {
                    format!("{proof}{settle}{last}commit; begin; {clear}commit; begin")
                }
            }
            None if stays => format!("select 1; {last}commit"),
            None => format!("select 1; {last}commit; begin"),
        };
        let commit = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(&mut *self.tx);
        let Ok(answer) = within(LONGEST, "the database", commit).await else {
            self.abandon();
            return Err(InboxError::Slow { doing: "commit" });
        };
        match answer {
            Ok(rows) if self.deallocate(&rows, stays).await => Ok(Some(self)),
            Ok(_) => {
                self.abandon();
                Ok(None)
            }
            Err(error) => Err(match InboxError::commit(error) {
                InboxError::Ended { .. } => self.ended().await,
                error => {
                    self.undo_behind();
                    error
                }
            }),
        }
    }

    /// Deallocates what the handler prepared by SQL. The names come with the answer to the commit. Returns `false` if
    /// the connection did not do it.
    async fn deallocate(&mut self, rows: &[PgRow], stays: bool) -> bool {
        let Some(mark) = &self.mark else { return true };
        let text: String = rows
            .iter()
            .filter_map(|row| row.try_get::<&str, _>(Session::PREPARED).ok())
            .filter(|name| !mark.session.has_prepared(name))
            .map(|name| format!("deallocate {name}; "))
            .collect();
        if !text.is_empty() {
            let text = if stays { text } else { format!("{text}commit; begin") };
            if let Err(error) = self.ask(text).await {
                tracing::debug!(%error, "what a handler prepared was not deallocated");
                return false;
            }
        }
        true
    }

    /// For a handler that ended the transaction: undoes what can be undone, and returns what became of the transaction.
    pub(crate) async fn ended(self) -> InboxError {
        let committed = matches!(self.undo().await, Some(Fate::Committed));
        InboxError::Ended { committed }
    }

    /// Rolls back, leaves the session as it was found, and returns what became of the transaction. `None`: it takes too
    /// long, and continues in the background.
    pub(crate) async fn undo(mut self) -> Option<Fate> {
        match timeout(FATE_TIMEOUT, undo(&mut self)).await {
            Ok(fate) => Some(fate),
            Err(_) => {
                self.undo_behind();
                None
            }
        }
    }

    /// Rolls back and leaves the session as it was found, without waiting for it. The pool would also roll back, but
    /// would leave the session's locks. A statement that a dropped handler left running must end first. If all that
    /// takes longer than [any other statement](LONGEST), the connection is closed, and its place in the pool is free.
    pub(crate) fn undo_behind(mut self) {
        if let (Some(_), Ok(runtime)) = (&self.mark, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                if timeout(LONGEST, undo(&mut self)).await.is_err() {
                    self.abandon();
                }
            });
        }
    }
}

async fn undo(begun: &mut Begun) -> Fate {
    let Some(mark) = &begun.mark else { return Fate::Undone };
    let TransactionMark { transaction, session } = mark;
    let clean = format!(
        "rollback; begin; select pg_catalog.pg_xact_status('{transaction}'::pg_catalog.xid8) as fate; {}{}commit; begin",
        session.settle(),
        session.clear()
    );
    let text = format!("select {} as same; {clean}", mark.is_same());
    let mut undone = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(&mut *begun.tx).await;
    let code = undone.as_ref().err().and_then(|error| error.as_database_error()?.code());
    let aborted = code.as_deref() == Some(ABORTED);
    if aborted {
        undone = sqlx::raw_sql(AssertSqlSafe(clean)).fetch_all(&mut *begun.tx).await;
    }
    let rows = match undone {
        Ok(rows) => rows,
        Err(error) => {
            tracing::debug!(%error, "a transaction was not undone by its owner");
            return Fate::Undone;
        }
    };
    let same = rows.iter().any(|row| matches!(row.try_get("same"), Ok(true)));
    let fate = rows.iter().find_map(|row| row.try_get::<&str, _>("fate").ok());
    let fate = match fate {
        Some("committed") => Fate::Committed,
        Some("in progress") => Fate::Prepared,
        _ if same || aborted => Fate::Undone,
        _ => Fate::RolledBack,
    };
    if fate == Fate::Prepared {
        let transaction = *transaction;
        if let Err(error) = roll_back_prepared(begun, transaction).await {
            tracing::error!(
                transaction, %error,
                "a handler prepared its transaction, which holds the event until somebody ends it: see \
                 pg_prepared_xacts, and use rollback prepared"
            );
        }
    }
    begun.deallocate(&rows, false).await;
    fate
}

/// Rolls back a transaction that a handler prepared. Nobody else knows of it, and it holds the event's row.
async fn roll_back_prepared(begun: &mut Begun, transaction: u64) -> Result<(), sqlx::Error> {
    let find = format!(
        "select pg_catalog.quote_literal(gid) from pg_catalog.pg_prepared_xacts \
         where transaction operator(pg_catalog.=) '{}'::pg_catalog.xid",
        // That view shows ids without their epoch.
        transaction & u64::from(u32::MAX)
    );
    let found = sqlx::raw_sql(AssertSqlSafe(find)).fetch_all(&mut *begun.tx).await?;
    for row in found {
        let gid: &str = row.try_get(0)?;
        // `rollback prepared` must run outside of a transaction. The begin at the end is for sqlx.
        for sql in ["rollback".to_owned(), format!("rollback prepared {gid}"), "begin".to_owned()] {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *begun.tx).await?;
        }
    }
    Ok(())
}

/// The error for an answer that does not belong to the statement that was sent.
pub(super) fn unexpected(said: &str) -> sqlx::Error {
    sqlx::Error::Protocol(format!(
        "the database said {said}; did another statement run instead, behind a pooler in transaction mode?"
    ))
}
