//! Checks that a pool's sessions are its own, and that they see all rows.
//!
//! A pooler in transaction mode (PgBouncer's `pool_mode = transaction`) may give a server's session to another client
//! after each transaction. Statements that sqlx and the inbox prepare under a name then meet statements of others under
//! the same name, and a statement that nobody sent may run: a claim once ran another statement with two parameters. The
//! inbox also sets and resets what belongs to a session. So it refuses such a pool before it prepares anything.
//!
//! Under row-level security, "no row" does not mean that there is none. The inbox relies on that, for example when it
//! looks for an event's failures, or for waiting events of its key. So it also refuses a role from which rows may be
//! hidden.
//!
//! It asks over two connections of its own, with simple queries. If a setting that was given when the connection was
//! opened is in effect, the session is its own, because poolers do not pass such settings on. If it is not, the
//! opposite is proved by two open connections that have had the same server process, or by one that has changed its
//! process.

use std::sync::Arc;
use std::time::Duration;

use pillarbox_store::HiddenRows;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// How often two connections are compared. The order is irregular, so that a pooler that gives its connections in turns
/// is noticed.
const LOOKS: [bool; 12] =
    [true, true, false, true, false, false, true, false, true, true, false, false];

/// The time limit for the whole check.
const PATIENCE: Duration = Duration::from_secs(10);

const SHOW: &str = "select coalesce(pg_catalog.current_setting('pillarbox.direct', true), '')";

/// Why a pool is refused.
#[derive(Debug, thiserror::Error)]
#[error(
    "the pool's connections go through a connection pooler in transaction mode, in which statements and settings of \
     different clients get mixed up; give the inbox a pool that connects to the database directly, or through a pooler \
     in session mode (docs/poolers.md)"
)]
pub struct Pooled;

/// What is known of a pool. The check is repeated until it has succeeded.
#[derive(Clone, Debug)]
pub(crate) struct PoolCheck {
    schema: Arc<str>,
    tables: &'static [&'static str],
    own: Arc<OnceCell<bool>>,
    /// Whether all rows are seen, as a session of the pool showed, or for now another session.
    open: Arc<OnceCell<()>>,
    open_for_now: Arc<OnceCell<()>>,
}

impl PoolCheck {
    /// For a pool that must see all rows of these tables.
    pub(crate) fn new(schema: &str, tables: &'static [&'static str]) -> Self {
        Self {
            schema: schema.into(),
            tables,
            own: Arc::default(),
            open: Arc::default(),
            open_for_now: Arc::default(),
        }
    }

    /// Fails if the pool's sessions are shared, if rows may be hidden from them, or if the database cannot be asked.
    pub(crate) async fn are_own(&self, pool: &PgPool) -> Result<(), sqlx::Error> {
        let ask = || async {
            let asked = timeout(PATIENCE, own(&pool.connect_options())).await;
            asked.unwrap_or(Err(sqlx::Error::PoolTimedOut))
        };
        if !*self.own.get_or_try_init(ask).await? {
            return Err(sqlx::Error::Configuration(Box::new(Pooled)));
        }
        self.show_all(pool).await
    }

    /// Fails if rows may be hidden. Only a session of the pool gives a final answer, because the pool may have set
    /// another role in it. While all of them are in use, possibly for long, a connection of the inbox itself answers
    /// for now.
    async fn show_all(&self, pool: &PgPool) -> Result<(), sqlx::Error> {
        if self.open.initialized() {
            return Ok(());
        }
        let look = async {
            let pooled = match pool.try_acquire() {
                Some(mut pooled) => self.sees_all(&mut pooled).await,
                None => Err(sqlx::Error::PoolTimedOut),
            };
            match pooled {
                Ok(()) => {
                    let _ = self.open.set(());
                    return Ok(());
                }
                Err(sqlx::Error::Configuration(cause)) => {
                    return Err(sqlx::Error::Configuration(cause));
                }
                // No connection is free, or the free one was closed by the server, which was not checked.
                Err(_) if self.open_for_now.initialized() => return Ok(()),
                Err(_) => {}
            }
            match pool.connect_options().connect().await {
                Ok(mut own) => {
                    self.sees_all(&mut own).await?;
                    let _ = self.open_for_now.set(());
                    own.close().await
                }
                // Then only the pool can answer, so wait for it.
                Err(error) if is_full(&error) => {
                    self.sees_all(&mut *pool.acquire().await?).await?;
                    let _ = self.open.set(());
                    Ok(())
                }
                Err(error) => Err(error),
            }
        };
        timeout(PATIENCE, look).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn sees_all(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        match HiddenRows::find(connection, &self.schema, self.tables, None).await? {
            None => Ok(()),
            Some(hidden) => Err(sqlx::Error::Configuration(Box::new(hidden))),
        }
    }
}

/// Whether the database has no connection left.
fn is_full(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("53300")
}

/// Whether an error says that a pool is refused.
pub(crate) fn is_pooled(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Configuration(cause) if cause.is::<Pooled>())
}

async fn own(options: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    match shows_option(options).await {
        Ok(true) => Ok(true),
        // The pooler does not pass the setting on, or refuses it.
        Ok(false) | Err(sqlx::Error::Database(_)) => compared(options).await,
        Err(error) => Err(error),
    }
}

async fn shows_option(options: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    let options = options.clone().options([("pillarbox.direct", "yes")]);
    let mut connection = options.connect().await?;
    let row = sqlx::raw_sql(SHOW).fetch_one(&mut connection).await?;
    let shown = sqlx::Row::try_get::<&str, _>(&row, 0)? == "yes";
    connection.close().await?;
    Ok(shown)
}

async fn compared(options: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    let mut one = match options.connect().await {
        Ok(one) => one,
        // The server has no connection left beside the pool's. Claims are checked in any case.
        Err(error) if is_full(&error) => return Ok(true),
        Err(error) => return Err(error),
    };
    let mut other = match options.connect().await {
        Ok(other) => other,
        Err(error) if is_full(&error) => return Ok(true),
        Err(error) => return Err(error),
    };
    let (mut first, mut second) = (None, None);
    let mut own = true;
    for which in LOOKS {
        let (connection, known) =
            if which { (&mut one, &mut first) } else { (&mut other, &mut second) };
        let process = process(connection).await?;
        own &= known.is_none_or(|known| known == process);
        *known = Some(process);
    }
    own &= first != second;
    one.close().await?;
    other.close().await?;
    Ok(own)
}

async fn process(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = sqlx::raw_sql("select pg_catalog.pg_backend_pid()").fetch_one(connection).await?;
    sqlx::Row::try_get(&row, 0)
}
