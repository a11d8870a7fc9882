//! Opens every connection of the relay and of the commands to the database, and gives each of them the same settings.
//!
//! A connection inherits settings from its role, its database and the server. Any of them may stop the relay
//! (`statement_timeout`), hide rows from it (`row_security`), change how a time is written (`DateStyle`), or make it
//! run somebody else's function (`search_path`). So each connection sets what its statements rely on, once, before it
//! runs any of them.
//!
//! This needs a connection that stays with its client. A pooler in transaction mode may give every transaction another
//! connection, and settings stay behind for other clients. So [`Database::direct`] checks for a pooler first, and
//! changes nothing until it knows.
//! nothing until it knows.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pillarbox_store::limit::{Late, limited};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};
use tokio::time::timeout;

use crate::config::{self, ConfigError, without_secrets};

/// The time limit for opening a connection and setting it up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often two connections are compared. The first comparison nearly always reveals a pooler. The others are for a
/// pool that is busy with other clients.
const LOOKS: usize = 4;
/// How often to try to remove `statement_timeout`. If the role's is only a few milliseconds, it may end the statement
/// that removes it.
const TRIES: usize = 5;

/// A database, and how its connections are opened.
#[derive(Clone)]
pub struct Database {
    /// The servers that the URL names, in this order.
    servers: Vec<PgConnectOptions>,
    url: String,
    statement_timeout: Duration,
}

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The URL cannot be used.
    #[error(transparent)]
    Url(ConfigError),
    /// The database did not accept the connection.
    #[error("no connection to the database at {url}")]
    Connect {
        /// The URL, without secrets.
        url: String,
        /// The error of sqlx.
        #[source]
        source: sqlx::Error,
    },
    /// The settings that the statements rely on cannot be set.
    #[error("the settings of the connection to the database at {url} cannot be set")]
    Settings {
        /// The URL, without secrets.
        url: String,
        /// The error of sqlx.
        #[source]
        source: sqlx::Error,
    },
    /// A pooler may give each transaction another server connection.
    #[error(
        "the database at {url} is behind a connection pooler in transaction mode; the relay and the commands need a \
         direct connection or a pool in session mode: put the server's own address into database_url"
    )]
    Pooled {
        /// The URL, without secrets.
        url: String,
    },
}

impl From<SessionError> for sqlx::Error {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Connect { source, .. } | SessionError::Settings { source, .. } => source,
            error => Self::config(error),
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options show the password.
        f.debug_struct("Database").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Database {
    /// The database of this URL. The server shows the connections under the name `application`.
    ///
    /// # Errors
    /// [`SessionError::Url`].
    pub fn new(url: &str, application: &str) -> Result<Self, SessionError> {
        let servers = config::servers(url).map_err(SessionError::Url)?;
        let named = |options: PgConnectOptions| {
            options.application_name(application).disable_statement_logging()
        };
        Ok(Self {
            servers: servers.into_iter().map(named).collect(),
            url: without_secrets(url),
            statement_timeout: Duration::ZERO,
        })
    }

    /// The server ends statements that run for longer than this. Default: zero, no limit.
    #[must_use]
    pub fn statement_timeout(mut self, limit: Duration) -> Self {
        self.statement_timeout = limit;
        self
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        // The servers differ only in host and port.
        self.servers
            .first()
            .map_or("", |server| server.get_database().unwrap_or_else(|| server.get_username()))
    }

    /// Where the database is: each server with its port, and the database's name. URLs with the same place lead to the
    /// same database, whatever logins they contain. It contains no secret.
    pub fn place(&self) -> String {
        let place = |server: &PgConnectOptions| {
            format!(
                "{}:{}:{}/{}",
                server.get_socket().map(|path| path.display().to_string()).unwrap_or_default(),
                server.get_host(),
                server.get_port(),
                server.get_database().unwrap_or_else(|| server.get_username())
            )
        };
        self.servers.iter().map(place).collect::<Vec<_>>().join(",")
    }

    /// Opens a connection. It may lead into a pooler, unless [`direct`](Self::direct) has succeeded before.
    ///
    /// # Errors
    /// [`SessionError::Connect`], [`SessionError::Settings`].
    pub async fn connect(&self) -> Result<PgConnection, SessionError> {
        let (mut connection, _) = self.open().await?;
        self.prepare(&mut connection).await?;
        Ok(connection)
    }

    /// Opens two connections that stay with this client. Refuses a pooler in transaction mode.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn direct(&self) -> Result<(PgConnection, PgConnection), SessionError> {
        let (mut one, server) = self.open().await?;
        let mut other = self.open_on(server).await?;
        self.look_for_pooler(&mut one, &mut other).await?;
        self.prepare(&mut one).await?;
        self.prepare(&mut other).await?;
        Ok((one, other))
    }

    /// Opens one connection that stays with this client. If the server has no second connection left for the
    /// comparison, the check is left out.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn one_direct(&self) -> Result<PgConnection, SessionError> {
        Ok(self.first_direct().await?.0)
    }

    /// As [`one_direct`](Self::one_direct). Also returns the server that it connected to.
    async fn first_direct(&self) -> Result<(PgConnection, &PgConnectOptions), SessionError> {
        let (mut one, server) = self.open().await?;
        match self.open_on(server).await {
            Ok(mut other) => {
                self.look_for_pooler(&mut one, &mut other).await?;
                // It is not needed any more, so an error while closing it does not matter.
                let _ = limited(CONNECT_TIMEOUT, other.close()).await;
            }
            Err(SessionError::Connect { source, .. }) if none_left(&source) => {}
            Err(error) => return Err(error),
        }
        self.prepare(&mut one).await?;
        Ok((one, server))
    }

    /// A pool of connections that stay with this client.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn pool(&self, connections: u32) -> Result<PgPool, SessionError> {
        // A pool itself would try for half a minute and then not say what was wrong.
        let (first, server) = self.first_direct().await?;
        let _ = limited(CONNECT_TIMEOUT, first.close()).await;
        let database = self.clone();
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(CONNECT_TIMEOUT)
            .after_connect(move |connection, _| {
                let database = database.clone();
                Box::pin(async move { Ok(database.prepare(connection).await?) })
            })
            .connect_with(server.clone())
            .await
            .map_err(|error| self.not_connected(error))
    }

    /// Connects to the first server that is a primary. If there is none, to the first server that answers; the caller
    /// decides whether a standby will do.
    async fn open(&self) -> Result<(PgConnection, &PgConnectOptions), SessionError> {
        let (mut standby, mut failed) = (None, None);
        for server in &self.servers {
            let opened = async {
                let mut connection = self.open_on(server).await?;
                let primary = self.servers.len() == 1 || self.is_primary(&mut connection).await?;
                Ok((connection, primary))
            };
            match opened.await {
                Ok((connection, true)) => return Ok((connection, server)),
                Ok((connection, false)) => drop(standby.get_or_insert((connection, server))),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        match (standby, failed) {
            (Some(standby), _) => Ok(standby),
            (None, Some(error)) => Err(error),
            (None, None) => {
                Err(self
                    .not_connected(sqlx::Error::Configuration("the URL names no server".into())))
            }
        }
    }

    async fn open_on(&self, server: &PgConnectOptions) -> Result<PgConnection, SessionError> {
        limited(CONNECT_TIMEOUT, server.connect()).await.map_err(|error| self.not_connected(error))
    }

    async fn is_primary(&self, connection: &mut PgConnection) -> Result<bool, SessionError> {
        let asked = sqlx::raw_sql("select not pg_catalog.pg_is_in_recovery()");
        let row = limited(CONNECT_TIMEOUT, connection.fetch_one(asked)).await;
        row.and_then(|row| row.try_get(0)).map_err(|error| self.not_connected(error))
    }

    fn not_connected(&self, source: sqlx::Error) -> SessionError {
        SessionError::Connect { url: self.url.clone(), source }
    }

    /// Sets everything that the statements rely on. It prepares no statements, because a pooler would keep them.
    async fn prepare(&self, connection: &mut PgConnection) -> Result<(), SessionError> {
        let settings = include_str!("session.sql")
            .replace("'statement timeout'", &format!("'{}'", self.statement_timeout.as_millis()));
        let set = async {
            let mut left = TRIES;
            // In a statement of its own, because a statement keeps the limit that it started under.
            while let Err(error) =
                connection.execute(sqlx::raw_sql("set statement_timeout = 0")).await
            {
                left -= 1;
                if left == 0 || code(&error).as_deref() != Some(CANCELED) {
                    return Err(error);
                }
            }
            connection.execute(sqlx::raw_sql(AssertSqlSafe(settings))).await.map(drop)
        };
        limited(CONNECT_TIMEOUT, set)
            .await
            .map_err(|source| SessionError::Settings { url: self.url.clone(), source })
    }

    /// Fails if two open connections share a server process, or if the process of one of them changes. Either proves a
    /// pooler in transaction or statement mode. The pool may be busy with other clients, so it looks several times.
    async fn look_for_pooler(
        &self,
        one: &mut PgConnection,
        other: &mut PgConnection,
    ) -> Result<(), SessionError> {
        let look = async {
            let mut seen: Option<(i32, i32)> = None;
            for _ in 0..LOOKS {
                let now = (backend(one).await?, backend(other).await?);
                if now.0 == now.1 || seen.is_some_and(|before| before != now) {
                    return Ok(true);
                }
                seen = Some(now);
            }
            Ok(false)
        };
        match limited(CONNECT_TIMEOUT, look).await {
            Ok(false) => Ok(()),
            Ok(true) => Err(SessionError::Pooled { url: self.url.clone() }),
            Err(error) => Err(self.not_connected(error)),
        }
    }
}

/// The server process of a connection. It prepares no statement, because the statement would stay on a pooler's
/// connection.
async fn backend(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let asked = sqlx::raw_sql("select pg_catalog.pg_backend_pid()");
    connection.fetch_one(asked).await?.try_get(0)
}

const CANCELED: &str = "57014";

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// Whether the server, the database or the role has no connection left.
fn none_left(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("53300")
}

/// How long to wait for statements that may take long. A short limit notices a dead connection soon, but it would end a
/// slow statement again and again. So the limit doubles after each wait without an answer, and starts again after an
/// answer. All clones share the limit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patience(Arc<AtomicU32>);

impl Patience {
    const SHORTEST: Duration = Duration::from_secs(15);
    const DOUBLINGS: u32 = 5;
    const LOOK: Duration = Duration::from_secs(1);

    fn limit(&self) -> Duration {
        Self::SHORTEST * 2_u32.pow(self.0.load(Ordering::Relaxed).min(Self::DOUBLINGS))
    }

    /// Waits for an answer.
    pub(crate) async fn wait<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        self.wait_unless(|| false, work).await
    }

    /// Waits for work, not counting the time while it waits for something else.
    pub(crate) async fn wait_unless<T>(
        &self,
        elsewhere: impl Fn() -> bool,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let limit = self.limit();
        let mut work = std::pin::pin!(work);
        let mut waited = Duration::ZERO;
        let result = loop {
            match timeout(Self::LOOK, &mut work).await {
                Ok(result) => break result,
                Err(_) if elsewhere() => waited = Duration::ZERO,
                Err(_) => waited += Self::LOOK,
            }
            if waited >= limit {
                self.0.fetch_add(1, Ordering::Relaxed);
                return Err(Late::new("the database", limit).into());
            }
        };
        if result.is_ok() {
            self.0.store(0, Ordering::Relaxed);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_doubles_after_a_wait_in_vain_and_is_what_it_was_after_an_answer() {
        let patience = Patience::default();
        let mut limits = Vec::new();
        for _ in 0..8 {
            limits.push(patience.limit().as_secs());
            let waited = patience.wait(std::future::pending::<Result<(), _>>()).await;
            assert!(matches!(waited, Err(sqlx::Error::Io(_))));
        }
        assert_eq!(limits, [15, 30, 60, 120, 240, 480, 480, 480]);
        patience.wait(async { Ok(()) }).await.unwrap();
        assert_eq!(patience.limit(), Patience::SHORTEST);
    }
}
