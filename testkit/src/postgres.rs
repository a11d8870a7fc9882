//! A throwaway Postgres.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep};

use crate::account::{Account, readable};
use crate::error::{IoContext, TestkitError};
use crate::find::Search;
use crate::install::cache_folder;
use crate::port::free_port;
use crate::process::Process;
use crate::run::run;
use crate::wait::eventually;

const START_DEADLINE: Duration = Duration::from_secs(30);

/// A Postgres of its own. It listens on loopback only, has the superuser `postgres` without a password, and ends with
/// its owner.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    programs: PathBuf,
    account: Option<Account>,
    arguments: Vec<String>,
    port: u16,
    version: String,
}

/// A database on a [`Postgres`].
#[derive(Clone, Debug)]
pub struct Database {
    /// Its URL.
    pub url: String,
    /// A pool of up to 20 connections. It belongs to the runtime that made it.
    pub pool: PgPool,
}

/// How a [`Postgres`] is started.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    settings: Vec<(String, String)>,
    durable: bool,
    own_identity: bool,
    files: Vec<(&'static str, &'static str, String)>,
}

impl PostgresOptions {
    /// Sets a server setting, as in `postgresql.conf`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Offers TLS, with this certificate and its private key in PEM form. If there are `client_authorities` (PEM), a
    /// certificate that a client shows must be signed by one of them.
    #[must_use]
    pub fn tls(mut self, certificate: &str, key: &str, client_authorities: Option<&str>) -> Self {
        self.files.push(("ssl_cert_file", "server.crt", certificate.to_owned()));
        self.files.push(("ssl_key_file", "server.key", key.to_owned()));
        if let Some(authorities) = client_authorities {
            self.files.push(("ssl_ca_file", "clients.crt", authorities.to_owned()));
        }
        self.setting("ssl", "on")
    }

    /// Decides who may connect, as `pg_hba.conf` does, before the rule that lets `postgres` in without a password.
    #[must_use]
    pub fn access(mut self, rules: &str) -> Self {
        let rules = format!("{rules}\nhost all postgres 127.0.0.1/32 trust\n");
        self.files.push(("hba_file", "access.conf", rules));
        self
    }

    /// Leaves Postgres its default durability. Otherwise `fsync` and `full_page_writes` are off: a crash of the server
    /// loses nothing, but a crash of the machine would. Its log is then kept to about 256 MB.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Makes a cluster with a system identifier of its own, which takes a second longer. Otherwise all clusters have
    /// the same one, because they are copies of one cluster.
    #[must_use]
    pub fn own_identity(mut self) -> Self {
        self.own_identity = true;
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// Any [`TestkitError`]; a failed start carries the end of the server's log.
    pub async fn start(self) -> Result<Postgres, TestkitError> {
        let mut postgres = blocking(move || Postgres::prepare(self)).await?;
        let mut result = postgres.run().await;
        for _ in 0..2 {
            let clash = matches!(&result, Err(TestkitError::Start { log, .. }) if log.contains("Address already in use"));
            if !clash {
                break;
            }
            postgres.port = free_port()?;
            result = postgres.run().await;
        }
        result.map(|()| postgres)
    }
}

impl Postgres {
    /// Starts a server with the default settings.
    ///
    /// # Errors
    /// As [`PostgresOptions::start`].
    pub async fn start() -> Result<Self, TestkitError> {
        Self::options().start().await
    }

    /// Options to start a server with other settings.
    pub fn options() -> PostgresOptions {
        PostgresOptions::default()
    }

    fn prepare(options: PostgresOptions) -> Result<Self, TestkitError> {
        let found = Search::of_this_process().postgres()?;
        let account = Account::unprivileged_for_root();
        let programs = match account {
            Some(account) => readable(&found.path, account)?,
            None => found.path,
        };
        let folder = tempfile::Builder::new()
            .prefix("pillarbox-postgres-")
            .tempdir()
            .context("making a folder for Postgres")?
            .keep();
        give(&folder, account)?;
        let process = Process::new("Postgres", folder);
        let data = process.folder().join("data");
        if options.own_identity {
            initdb(&programs, account, &data)?;
        } else {
            let template = template(&programs, account, &found.version)?;
            run(Command::new("cp").arg("-a").arg(&template).arg(&data))?;
        }
        let mut settings = vec![
            ("listen_addresses".to_owned(), "127.0.0.1".to_owned()),
            ("unix_socket_directories".to_owned(), String::new()),
            ("max_connections".to_owned(), "200".to_owned()),
            ("autovacuum_naptime".to_owned(), "10s".to_owned()),
        ];
        if !options.durable {
            // Half-written pages come from crashes of the machine only. The small log keeps disks of tests small.
            for (name, value) in
                [("fsync", "off"), ("full_page_writes", "off"), ("max_wal_size", "256MB")]
            {
                settings.push((name.to_owned(), value.to_owned()));
            }
        }
        for (setting, name, text) in options.files {
            let path = process.folder().join(name);
            fs::write(&path, text).context("writing a file for Postgres")?;
            // Postgres refuses a key that others can read.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
                .context("closing a file for Postgres")?;
            give(&path, account)?;
            settings.push((setting.to_owned(), path.display().to_string()));
        }
        settings.extend(options.settings);
        let arguments = settings
            .into_iter()
            .flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")])
            .collect();
        Ok(Self {
            process,
            programs,
            account,
            arguments,
            port: free_port()?,
            version: found.version,
        })
    }

    async fn run(&mut self) -> Result<(), TestkitError> {
        let data = self.data_dir();
        let mut arguments = vec![
            "-D".to_owned(),
            data.display().to_string(),
            "-p".to_owned(),
            self.port.to_string(),
        ];
        arguments.extend(self.arguments.iter().cloned());
        // A killed server leaves its lock file behind. No other process uses the folder.
        let _ = fs::remove_file(data.join("postmaster.pid"));
        self.process.start(&self.programs.join("postgres"), &arguments, self.account)?;
        let connect: PgConnectOptions = self.url("postgres").parse()?;
        let mut ended = false;
        let up = eventually("Postgres to answer", START_DEADLINE, async || {
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

    /// The URL of a database on it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Its port on 127.0.0.1. It stays the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// The version that it prints.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The folder with its programs. `psql` and `pg_dump` may be missing there.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The folder with its data. It belongs to the account under which the server runs.
    pub fn data_dir(&self) -> PathBuf {
        self.process.folder().join("data")
    }

    /// Creates a database.
    ///
    /// # Errors
    /// The error of Postgres.
    pub async fn create_database(&self, name: &str) -> Result<Database, TestkitError> {
        let mut connection = PgConnection::connect(&self.url("postgres")).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("create database \"{name}\"")))
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        let url = self.url(name);
        let pool = PgPoolOptions::new().max_connections(20).connect(&url).await?;
        Ok(Database { url, pool })
    }

    /// Kills it (SIGKILL), as a power cut would. [`restart`](Self::restart) starts it again.
    ///
    /// # Errors
    /// [`TestkitError::NotRunning`].
    pub fn kill(&self) -> Result<(), TestkitError> {
        self.process.signal(Signal::KILL)
    }

    /// Pauses it (SIGSTOP), so that it accepts no new connections. Only the process that accepts connections is paused;
    /// the processes that serve open connections continue. When this returns, that process has stopped.
    ///
    /// # Errors
    /// [`TestkitError::NotRunning`], or [`TestkitError::Deadline`] if it does not stop in time.
    pub fn pause(&self) -> Result<(), TestkitError> {
        self.process.pause()
    }

    /// Continues it after [`pause`](Self::pause).
    ///
    /// # Errors
    /// [`TestkitError::NotRunning`].
    pub fn resume(&self) -> Result<(), TestkitError> {
        self.process.signal(Signal::CONT)
    }

    /// Stops it cleanly, ending open connections, and waits for it.
    ///
    /// # Errors
    /// [`TestkitError::NotRunning`], [`TestkitError::Deadline`].
    pub async fn stop(&self) -> Result<(), TestkitError> {
        self.process.signal(Signal::INT)?;
        eventually("Postgres to stop", Duration::from_secs(20), async || {
            Ok::<_, TestkitError>((!self.process.is_running()).then_some(()))
        })
        .await
    }

    /// Starts it again on the same port and data, and waits until it answers. If it still runs, it is killed first.
    ///
    /// # Errors
    /// As [`PostgresOptions::start`].
    pub async fn restart(&mut self) -> Result<(), TestkitError> {
        let until = Instant::now() + START_DEADLINE;
        loop {
            let result = self.run().await;
            // The processes that served a killed server's connections take a moment to notice.
            let lingering = matches!(&result, Err(TestkitError::Start { log, .. }) if log.contains("pre-existing shared memory block"));
            if !lingering || Instant::now() > until {
                return result;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

/// A data folder as `initdb` makes it, which is kept as a template. It is made once for each version and account.
fn template(
    programs: &Path,
    account: Option<Account>,
    version: &str,
) -> Result<PathBuf, TestkitError> {
    let word: String =
        version.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let uid = account.map_or_else(|| rustix::process::geteuid().as_raw(), |account| account.uid);
    let cache = cache_folder();
    let place = cache.join(format!("initdb-{word}-{uid}"));
    if place.is_dir() {
        return Ok(place);
    }
    fs::create_dir_all(&cache).context("making the cache folder")?;
    let lock = File::create(cache.join(format!("initdb-{uid}.lock")))
        .context("locking the cache folder")?;
    lock.lock().context("locking the cache folder")?;
    if place.is_dir() {
        return Ok(place);
    }
    let folder = tempfile::Builder::new()
        .prefix("pillarbox-initdb-")
        .tempdir()
        .context("making a temporary folder")?;
    give(folder.path(), account)?;
    let data = folder.path().join("data");
    initdb(programs, account, &data)?;
    let beside = tempfile::Builder::new()
        .prefix("installing-")
        .tempdir_in(&cache)
        .context("making a temporary folder")?;
    run(Command::new("cp").arg("-a").arg(&data).arg(beside.path().join("data")))?;
    fs::rename(beside.path().join("data"), &place).context("keeping the data folder")?;
    Ok(place)
}

fn initdb(programs: &Path, account: Option<Account>, data: &Path) -> Result<(), TestkitError> {
    let mut initdb = Command::new(programs.join("initdb"));
    initdb
        .args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "-D",
        ])
        .arg(data)
        .current_dir(data.parent().unwrap_or(data));
    if let Some(account) = account {
        initdb.uid(account.uid).gid(account.gid);
    }
    run(&mut initdb)
}

pub(crate) fn give(folder: &Path, account: Option<Account>) -> Result<(), TestkitError> {
    match account {
        Some(account) => {
            chown(folder, Some(account.uid), Some(account.gid)).context("giving a folder away")
        }
        None => Ok(()),
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TestkitError> + Send + 'static,
) -> Result<T, TestkitError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(TestkitError::Io {
            what: "preparing a server".into(),
            source: std::io::Error::other(error),
        }),
    }
}
