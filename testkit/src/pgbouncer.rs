//! A throwaway PgBouncer in front of a [`Postgres`].

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use crate::account::Account;
use crate::error::{IoContext, TestkitError};
use crate::find;
use crate::port::free_port;
use crate::postgres::{Postgres, blocking, give};
use crate::process::Process;
use crate::wait::eventually;

const START_DEADLINE: Duration = Duration::from_secs(20);

/// When PgBouncer may give a server connection to another client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolMode {
    /// When the client has disconnected.
    Session,
    /// After each transaction.
    #[default]
    Transaction,
    /// After each statement. Transactions of several statements are refused.
    Statement,
}

impl fmt::Display for PoolMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
            Self::Statement => "statement",
        })
    }
}

/// A PgBouncer of its own. It listens on loopback only, lets every role of its Postgres in without a password, and ends
/// with its owner.
#[derive(Debug)]
pub struct PgBouncer {
    process: Process,
    port: u16,
    version: String,
}

/// How a [`PgBouncer`] is started.
#[derive(Clone, Debug, Default)]
pub struct PgBouncerOptions {
    mode: PoolMode,
    settings: Vec<(String, String)>,
}

impl PgBouncerOptions {
    /// Sets when a server connection may go to another client. The default is [`PoolMode::Transaction`].
    #[must_use]
    pub fn mode(mut self, mode: PoolMode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets a setting, as in the section `[pgbouncer]` of `pgbouncer.ini`. For instance, `default_pool_size` is the
    /// number of server connections that each user has in each database. Here it is 2, so that clients share
    /// connections.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it in front of `postgres` and waits until it answers. Returns `None` if there is no PgBouncer; a test
    /// should then print `NOT TESTED` and return.
    ///
    /// # Errors
    /// Any [`TestkitError`]; a failed start carries the end of PgBouncer's log.
    pub async fn start(self, postgres: &Postgres) -> Result<Option<PgBouncer>, TestkitError> {
        self.start_before(postgres.port()).await
    }

    /// Like [`start`](Self::start), but in front of a port of 127.0.0.1, for instance that of a
    /// [`Proxy`](crate::Proxy).
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_before(self, server_port: u16) -> Result<Option<PgBouncer>, TestkitError> {
        let mut last = None;
        for _ in 0..3 {
            let options = self.clone();
            let Some((mut pgbouncer, program)) =
                blocking(move || options.prepare(server_port)).await?
            else {
                return Ok(None);
            };
            match pgbouncer.run(program).await {
                Ok(()) => return Ok(Some(pgbouncer)),
                // Another process took the port.
                Err(error @ TestkitError::Start { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        last.map_or(Ok(None), Err)
    }

    fn prepare(self, server_port: u16) -> Result<Option<(PgBouncer, PathBuf)>, TestkitError> {
        let Some(found) = find::pgbouncer()? else {
            return Ok(None);
        };
        let folder = tempfile::Builder::new()
            .prefix("pillarbox-pgbouncer-")
            .tempdir()
            .context("making a folder for PgBouncer")?
            .keep();
        let account = Account::unprivileged_for_root();
        give(&folder, account)?;
        let process = Process::new("PgBouncer", folder);
        let port = free_port()?;
        let users = process.folder().join("users.txt");
        let mut settings = vec![
            ("listen_addr", "127.0.0.1".to_owned()),
            ("listen_port", port.to_string()),
            ("unix_socket_dir", String::new()),
            ("pool_mode", self.mode.to_string()),
            ("default_pool_size", "2".to_owned()),
            ("max_client_conn", "500".to_owned()),
            ("auth_type", "trust".to_owned()),
            ("auth_file", users.display().to_string()),
            // This also lets in roles that a test creates later.
            ("auth_user", "postgres".to_owned()),
            (
                "auth_query",
                "select rolname::text, ''::text from pg_catalog.pg_roles where rolname = $1"
                    .to_owned(),
            ),
            ("admin_users", "postgres".to_owned()),
            // sqlx sends this parameter, and PgBouncer refuses parameters that it does not know.
            ("ignore_startup_parameters", "extra_float_digits".to_owned()),
            ("server_login_retry", "1".to_owned()),
        ];
        settings.retain(|(name, _)| !self.settings.iter().any(|(given, _)| given == name));
        let mut text = format!("[databases]\n* = host=127.0.0.1 port={server_port}\n[pgbouncer]\n");
        for (name, value) in &settings {
            text.push_str(&format!("{name} = {value}\n"));
        }
        for (name, value) in &self.settings {
            text.push_str(&format!("{name} = {value}\n"));
        }
        let file = process.folder().join("pgbouncer.ini");
        for (path, text) in [(&users, "\"postgres\" \"\"\n".to_owned()), (&file, text)] {
            fs::write(path, text).context("writing a file for PgBouncer")?;
            give(path, account)?;
        }
        Ok(Some((PgBouncer { process, port, version: found.version }, found.path)))
    }
}

impl PgBouncer {
    /// Options to start one.
    pub fn options() -> PgBouncerOptions {
        PgBouncerOptions::default()
    }

    async fn run(&mut self, program: PathBuf) -> Result<(), TestkitError> {
        let file = self.process.folder().join("pgbouncer.ini").display().to_string();
        // PgBouncer refuses to run as root.
        self.process.start(&program, &[file], Account::unprivileged_for_root())?;
        let connect: PgConnectOptions = self.url("postgres").parse()?;
        let mut ended = false;
        let up = eventually("PgBouncer to answer", START_DEADLINE, async || {
            match PgConnection::connect_with(&connect).await {
                Ok(connection) => connection.close().await.map(Some),
                Err(error) => {
                    ended = !self.process.is_running();
                    if ended { Ok(Some(())) } else { Err(error) }
                }
            }
        })
        .await;
        match up {
            Ok(()) if !ended => Ok(()),
            Ok(()) => Err(self.process.failed("it ended")),
            Err(error) => Err(self.process.failed(error.to_string())),
        }
    }

    /// The URL of a database behind it, as the superuser.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// The URL of a database behind it, as this role.
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The version that it prints.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}
