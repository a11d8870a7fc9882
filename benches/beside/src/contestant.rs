//! What the program compares: an outbox, and the reader that ships from it.

use std::time::Duration;

use anyhow::{Result, bail};
use async_trait::async_trait;
use sqlx::{PgPool, Postgres, Transaction};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::contestants::{
    distributed::Distributed, none::NoOutbox, outbox_core::OutboxCore, pgq::PgQ,
    pillarbox::Pillarbox, poller::Poller,
};
use crate::site::Site;

/// An outbox, and the reader that ships from it.
#[async_trait]
pub trait Contestant: Send + Sync {
    /// Its name, with what distinguishes it from others on the same outbox.
    fn name(&self) -> String;

    /// The name of its outbox. Contestants with the same outbox write in the same way.
    fn outbox(&self) -> &'static str;

    /// Whether it ships anything.
    fn ships(&self) -> bool {
        true
    }

    /// The reason why it cannot take part on this Postgres, if there is one.
    async fn missing(&self, _postgres: &PgPool) -> Result<Option<String>> {
        Ok(None)
    }

    /// Creates its schema.
    async fn prepare(&self, site: &Site) -> Result<()>;

    /// Runs the business transaction up to the commit: it locks the key's account, counts the commit, and writes the
    /// event.
    async fn write(&self, site: &Site, key: i32, due: i64) -> Result<Open>;

    /// The statement that writes a part of a backlog, from the rows that `backlog($1, $2, $3, $4)` returns.
    fn backlog(&self) -> &'static str;

    /// What must be done after each transaction of a backlog.
    async fn attend(&self, _site: &Site) -> Result<()> {
        Ok(())
    }

    /// Starts shipping, to the site's topic.
    async fn ship(&self, site: &Site) -> Result<Running>;

    /// Brings the outbox into the state after everything in it was shipped, with the contestant's own statements.
    async fn pass(&self, site: &Site) -> Result<()>;
}

/// All contestants, in the order of the tables.
pub fn contestants() -> Vec<Box<dyn Contestant>> {
    let mut all: Vec<Box<dyn Contestant>> = vec![Box::new(NoOutbox)];
    all.extend(Pillarbox::all().map(|one| Box::new(one) as _));
    all.extend(Poller::all().map(|one| Box::new(one) as _));
    all.push(Box::new(PgQ));
    all.extend(OutboxCore::all().map(|one| Box::new(one) as _));
    all.extend(Distributed::all().map(|one| Box::new(one) as _));
    all
}

/// A transaction that has not been committed yet.
pub struct Open {
    transaction: Either,
    committed: Option<Box<dyn FnOnce() + Send>>,
}

enum Either {
    Sqlx(Transaction<'static, Postgres>),
    Sqlx08(sqlx08::Transaction<'static, sqlx08::Postgres>),
}

impl Open {
    pub async fn commit(self) -> Result<()> {
        match self.transaction {
            Either::Sqlx(transaction) => transaction.commit().await?,
            Either::Sqlx08(transaction) => transaction.commit().await?,
        }
        if let Some(committed) = self.committed {
            committed();
        }
        Ok(())
    }

    /// A transaction with something to do after the commit.
    pub fn then(self, committed: impl FnOnce() + Send + 'static) -> Self {
        Self { committed: Some(Box::new(committed)), ..self }
    }
}

impl From<Transaction<'static, Postgres>> for Open {
    fn from(transaction: Transaction<'static, Postgres>) -> Self {
        Self { transaction: Either::Sqlx(transaction), committed: None }
    }
}

impl From<sqlx08::Transaction<'static, sqlx08::Postgres>> for Open {
    fn from(transaction: sqlx08::Transaction<'static, sqlx08::Postgres>) -> Self {
        Self { transaction: Either::Sqlx08(transaction), committed: None }
    }
}

/// Begins the business transaction: counts one more commit of the key, whose account stays locked, and returns its
/// number.
pub async fn begin(site: &Site, key: i32) -> Result<(Transaction<'static, Postgres>, i64)> {
    let mut transaction = site.pool.begin().await?;
    let n = sqlx::query_scalar("update account set n = n + 1 where key = $1 returning n")
        .bind(key)
        .fetch_one(&mut *transaction)
        .await?;
    Ok((transaction, n))
}

/// A running reader.
#[derive(Default)]
pub struct Running {
    shutdown: CancellationToken,
    tasks: JoinSet<Result<()>>,
}

impl Running {
    /// Cancel this to stop the reader.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    pub fn spawn(&mut self, task: impl Future<Output = Result<()>> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Fails if a task has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.tasks.try_join_next() {
            Some(ended) => {
                ended??;
                bail!("the reader has stopped by itself")
            }
            None => Ok(()),
        }
    }

    /// Stops the reader, and waits a moment for messages under way.
    pub async fn stop(mut self) -> Result<()> {
        self.shutdown.cancel();
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended??;
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(5), all).await.unwrap_or(Ok(()))
    }
}
