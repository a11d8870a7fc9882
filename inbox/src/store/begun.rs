//! The inbox's transactions: begun, proved to be the same at their end, and left as they were found.
//!
//! A handler has a whole connection in its hands, and may end the transaction that it was given: by `rollback`, by
//! `commit and chain`, by `prepare transaction`. If the inbox then committed, the event would be acknowledged without
//! its row, or with half of its effects. So the claim says which transaction it is (`pg_current_xact_id()`), and the
//! commit goes in one message behind a statement that fails in any other one, and outside of all. A savepoint of the
//! inbox's own would prove the same, and cost each event a transaction id more.
//!
//! A handler that has ended its transaction may also fail. What it wrote before is undone then, or committed; what it
//! wrote behind a rollback, outside of any transaction or in one of its own, is there for good, and would be written
//! again with every try. So a rollback asks first which transaction it ends. Where a statement has failed, nothing can be
//! asked: such a transaction is taken for the one that was begun, since a failed statement is what failed handlers
//! mostly have. What is missed are handlers that rolled back, wrote, began another one and failed in that: they are
//! tried `max_attempts` times. (No mark outlives a failed statement: settings are reset with it, `rollback and chain`
//! included. A savepoint would, for a transaction id more with each event.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use pillarbox_store::limit::{limited, within};
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, Row};
use tokio::time::timeout;

use crate::error::{ENDED, InboxError};
use crate::store::lent::{LONGEST, let_go};
use crate::store::session::{Session, Sessions};
use crate::tx::Tx;

/// How long it may take to get a connection from the pool and open a transaction. A pool that is shared with others may
/// have none for a while.
pub(crate) const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the undoing of a transaction may take. The statement that a dropped handler has left running is waited
/// for; beyond this its connection is closed.
const UNDO_TIMEOUT: Duration = Duration::from_secs(30);

/// What Postgres says outside of any transaction.
const NO_TRANSACTION: &str = "25P01";

/// What it says in one in which a statement has failed.
const ABORTED: &str = "25P02";

/// How long an event's failure waits to hear what became of its transaction.
const FATE_TIMEOUT: Duration = Duration::from_secs(1);

/// An open transaction, and since when its connection has been away from the pool.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) tx: Tx,
    pub(crate) taken_at: Instant,
    /// The statement_timeout of this connection's transactions in milliseconds, once it has been found out: asking for
    /// it in each of them would cost as much as the claim.
    pub(crate) limit: Option<u64>,
    /// Set before a handler gets the transaction.
    pub(crate) mark: Option<Mark>,
    /// How to reach the same database.
    options: Arc<PgConnectOptions>,
}

/// What tells a transaction from others, and what its session was like before.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    transaction: u64,
    session: Arc<Session>,
}

/// What became of a transaction that was to be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing of it is left; or, if the connection was lost, nobody says otherwise.
    Undone,
    /// The handler had committed it.
    Committed,
    /// The handler had rolled it back, and what it wrote afterwards may be there.
    RolledBack,
    /// The handler had prepared it. It has been rolled back.
    Prepared,
}

impl Fate {
    /// The failure that this is, whatever the handler said, if the handler had ended the transaction.
    pub(crate) fn ended(self) -> Option<InboxError> {
        match self {
            Self::Undone => None,
            Self::Committed => Some(InboxError::Ended { committed: true }),
            Self::RolledBack | Self::Prepared => Some(InboxError::Ended { committed: false }),
        }
    }
}

impl Mark {
    /// A statement that fails in any other transaction than this one.
    ///
    /// It also fails in an aborted one, in which a plain `commit` rolls back and *succeeds*: a handler that passes over
    /// a failed insert would have its event acknowledged and nothing written.
    fn proof(&self) -> String {
        let same = self.is_same();
        format!(
            "select case when {same} then 1 else pg_catalog.current_setting('{ENDED}')::integer end; "
        )
    }

    /// Whether a statement runs in this transaction; null outside of all.
    fn is_same(&self) -> String {
        format!(
            "pg_catalog.pg_current_xact_id_if_assigned() operator(pg_catalog.=) '{}'::pg_catalog.xid8",
            self.transaction
        )
    }
}

impl Begun {
    /// `options`: those of the pool that the transaction's connection is from.
    pub(crate) fn new(tx: Tx, options: Arc<PgConnectOptions>) -> Self {
        Self { tx, taken_at: Instant::now(), limit: None, mark: None, options }
    }

    /// Its connection did not answer in time, and is closed. What became of the transaction is not known.
    pub(crate) fn abandon(self) {
        let_go(self.tx, self.options);
    }

    /// Rolls back, where no handler had the transaction.
    #[cfg(feature = "http")]
    pub(crate) async fn roll_back(mut self) {
        // With a begin behind it, for sqlx.
        if let Err(error) = self.ask("rollback; begin".into()).await {
            tracing::debug!(%error, "a transaction was not rolled back by its owner");
            self.abandon();
        }
    }

    /// Sends statements of the inbox's own, within the [limit](LONGEST).
    async fn ask(&mut self, text: String) -> Result<Vec<PgRow>, sqlx::Error> {
        limited(LONGEST, sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(&mut *self.tx)).await
    }

    /// Marks the transaction: its id and its backend's, as the database says them.
    pub(crate) async fn mark(
        &mut self,
        sessions: &Sessions,
        transaction: &str,
        backend: i32,
        own_lock: Option<i64>,
    ) -> Result<(), sqlx::Error> {
        let transaction = transaction.parse().map_err(|_| unexpected("the id of a transaction"))?;
        let session = sessions.of(backend, &mut self.tx, own_lock).await?;
        self.mark = Some(Mark { transaction, session });
        Ok(())
    }

    /// Runs a statement of the inbox's own behind the handler, if the transaction is the one that was begun: with the
    /// role and the settings of before.
    pub(crate) async fn settle(&mut self) -> Result<(), sqlx::Error> {
        let Some(mark) = &self.mark else { return Ok(()) };
        let text = format!("{}{}", mark.proof(), mark.session.settle());
        self.ask(text).await.map(drop)
    }

    /// Runs `sql` behind the handler, if the transaction is the one that was begun.
    pub(crate) async fn prove_and(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        let proof = self.mark.as_ref().map(Mark::proof).unwrap_or_default();
        self.ask(format!("{proof}{sql}")).await.map(drop)
    }

    /// Rolls back to a savepoint, and releases it.
    pub(crate) async fn undo_part(&mut self, savepoint: &str) -> Result<(), InboxError> {
        let proof = self.mark.as_ref().map(Mark::proof).unwrap_or_default();
        let text =
            format!("rollback to savepoint {savepoint}; {proof}release savepoint {savepoint}");
        self.ask(text).await.map(drop).map_err(|error| {
            let code = error.as_database_error().and_then(|error| error.code());
            match code.as_deref() {
                // There is no transaction, or no such savepoint in it.
                Some(NO_TRANSACTION | "3B001") => InboxError::Ended { committed: false },
                Some("42704") => InboxError::commit(error),
                _ => InboxError::database("roll back to a savepoint")(error),
            }
        })
    }

    /// Commits the transaction that was begun, or says that it did not; all in one round trip, with `last` before the
    /// commit (ends with a semicolon, or is empty).
    ///
    /// `stays`: the connection is used again without a look at it. Otherwise a `begin` goes behind, for sqlx, which does
    /// not know of the commit and sends a rollback as the connection goes back to the pool.
    ///
    /// Nothing is left of it if the connection was silent behind the commit. If it was silent before, whether the
    /// transaction is committed is not known.
    pub(crate) async fn commit(
        mut self,
        last: &str,
        stays: bool,
    ) -> Result<Option<Self>, InboxError> {
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

    /// Forgets what the handler prepared by SQL. Names come with the answer to the commit.
    /// `false` if the connection did not do that.
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

    /// The handler ended the transaction: takes back what can be, and says how that stands.
    pub(crate) async fn ended(self) -> InboxError {
        let committed = matches!(self.undo().await, Some(Fate::Committed));
        InboxError::Ended { committed }
    }

    /// Rolls back, leaves the session as it was found, and says what became of the transaction. `None` if that takes
    /// too long: it is done in the background then.
    pub(crate) async fn undo(mut self) -> Option<Fate> {
        match timeout(FATE_TIMEOUT, undo(&mut self)).await {
            Ok(fate) => Some(fate),
            Err(_) => {
                self.undo_behind();
                None
            }
        }
    }

    /// Rolls back and leaves the session as it was found, without waiting for it. The pool would roll back, too, and
    /// leave the locks that a session has.
    pub(crate) fn undo_behind(mut self) {
        if let (Some(_), Ok(runtime)) = (&self.mark, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                if timeout(UNDO_TIMEOUT, undo(&mut self)).await.is_err() {
                    self.abandon();
                }
            });
        }
    }
}

async fn undo(begun: &mut Begun) -> Fate {
    let Some(mark) = &begun.mark else { return Fate::Undone };
    let Mark { transaction, session } = mark;
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

/// Rolls back what a handler prepared: nobody else knows of it, and it holds the event's row.
async fn roll_back_prepared(begun: &mut Begun, transaction: u64) -> Result<(), sqlx::Error> {
    let find = format!(
        "select pg_catalog.quote_literal(gid) from pg_catalog.pg_prepared_xacts \
         where transaction operator(pg_catalog.=) '{}'::pg_catalog.xid",
        // Without its epoch, as that view has it.
        transaction & u64::from(u32::MAX)
    );
    let found = sqlx::raw_sql(AssertSqlSafe(find)).fetch_all(&mut *begun.tx).await?;
    for row in found {
        let gid: &str = row.try_get(0)?;
        // Not inside of a transaction; behind each its end, for sqlx.
        for sql in ["rollback".to_owned(), format!("rollback prepared {gid}"), "begin".to_owned()] {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *begun.tx).await?;
        }
    }
    Ok(())
}

/// An answer that is none to the statement that was sent.
pub(super) fn unexpected(said: &str) -> sqlx::Error {
    sqlx::Error::Protocol(format!(
        "the database said {said}; did another statement run instead, behind a pooler in transaction mode?"
    ))
}
