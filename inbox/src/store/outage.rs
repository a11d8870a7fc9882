//! Checks whether the database accepts connections and can do its work.

use std::time::Duration;

use pillarbox_store::full_text;
use sqlx::{ConnectOptions, Connection, Row};

use crate::store::statements::Store;

/// The time limit for opening a connection and getting an answer.
const LET_IN_TIMEOUT: Duration = Duration::from_secs(2);

/// One run of a database server. If two differ, the server has been restarted in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRun(String);

impl Store {
    /// Why the database accepts no connection. `None`: it accepts one. Checked with a connection of its own, not the
    /// pool's.
    pub async fn unreachable(&self) -> Option<String> {
        let options = self.pool.connect_options();
        let asked = async {
            let mut connection = options.connect().await?;
            sqlx::raw_sql("select 1").execute(&mut connection).await?;
            connection.close().await
        };
        match tokio::time::timeout(LET_IN_TIMEOUT, asked).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                let code = error.as_database_error().map(|error| error.code().unwrap_or_default());
                // The database runs, even if it has no connection left for this, unless it starts or stops.
                let there = code.is_some_and(|code| !code.starts_with("57P"));
                (!there).then(|| full_text(&error))
            }
            Err(_) => Some(format!("the database has not answered for {LET_IN_TIMEOUT:?}")),
        }
    }

    /// Proof that the database works: it accepts a connection of its own, not the pool's, and writes. `None`: there is
    /// no proof.
    pub async fn well(&self) -> Option<ServerRun> {
        let options = self.pool.connect_options();
        let asked = async {
            let mut connection = options.connect().await?;
            let mut tx = connection.begin().await?;
            let row = sqlx::raw_sql(self.statements.well.clone()).fetch_one(&mut *tx).await?;
            let started = row.try_get(0)?;
            tx.rollback().await?;
            connection.close().await?;
            Ok::<_, sqlx::Error>(started)
        };
        match tokio::time::timeout(LET_IN_TIMEOUT, asked).await {
            Ok(Ok(started)) => Some(ServerRun(started)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no proof that the database is well");
                None
            }
            Err(_) => None,
        }
    }
}
