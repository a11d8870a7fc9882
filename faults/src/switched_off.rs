//! Protections that a test takes away, to show that a run finds the violations that they prevent.
//!
//! The programs are not changed for this. Triggers in the databases of the run undo what a protection has written.

use sqlx::PgPool;

/// A protection that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchedOff {
    /// The saved cursor names the transactions that were still open, and lags behind them.
    OpenTransactions,
    /// A takeover raises the epoch, which every write of the relay names.
    Fence,
    /// The inbox skips what it has handled.
    Dedup,
}

impl SwitchedOff {
    /// Creates the triggers, in the database of the outbox or in that of the inbox. With a saga there is an
    /// inbox in both.
    pub(crate) async fn apply(
        self,
        outbox: &PgPool,
        inbox: &PgPool,
        saga: bool,
    ) -> Result<(), sqlx::Error> {
        let (database, triggers) = match self {
            Self::OpenTransactions => (outbox, include_str!("switched_off/open_transactions.sql")),
            Self::Fence => (outbox, include_str!("switched_off/fence.sql")),
            Self::Dedup => (inbox, include_str!("switched_off/dedup.sql")),
        };
        if saga && self == Self::Dedup {
            sqlx::raw_sql(triggers).execute(outbox).await?;
        }
        sqlx::raw_sql(triggers).execute(database).await.map(drop)
    }
}
