//! A throwaway nats-server with JetStream.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use rustix::process::Signal;

use crate::error::{IoContext, TestkitError};
use crate::find::Search;
use crate::port::free_port;
use crate::postgres::blocking;
use crate::process::Process;
use crate::wait::eventually;

const START_DEADLINE: Duration = Duration::from_secs(20);

/// A nats-server of its own. It listens on loopback only, keeps JetStream in files, and ends with its owner.
#[derive(Debug)]
pub struct Nats {
    process: Process,
    program: PathBuf,
    config: String,
    sync_always: bool,
    port: u16,
    version: String,
    anonymous: bool,
}

/// How a [`Nats`] is started.
#[derive(Clone, Debug, Default)]
pub struct NatsOptions {
    config: String,
    sync_always: bool,
    closed: bool,
}

impl NatsOptions {
    /// Adds lines to the server's configuration file.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self.config.push('\n');
        self
    }

    /// Syncs every message to disk before it is acknowledged. The default is to sync every two minutes.
    #[must_use]
    pub fn sync_always(mut self) -> Self {
        self.sync_always = true;
        self
    }

    /// Says that the configuration lets nobody in without credentials. Then the start waits only for the port, and not
    /// for JetStream to answer an anonymous client.
    #[must_use]
    pub fn closed(mut self) -> Self {
        self.closed = true;
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// Any [`TestkitError`]; a failed start carries the end of the server's log.
    pub async fn start(self) -> Result<Nats, TestkitError> {
        let mut nats = blocking(move || Nats::prepare(self)).await?;
        let mut result = nats.run().await;
        for _ in 0..2 {
            let clash = matches!(&result, Err(TestkitError::Start { log, .. }) if log.contains("address already in use"));
            if !clash {
                break;
            }
            nats.port = free_port()?;
            result = nats.run().await;
        }
        result.map(|()| nats)
    }
}

impl Nats {
    /// Starts a server with the default settings.
    ///
    /// # Errors
    /// As for [`NatsOptions::start`].
    pub async fn start() -> Result<Self, TestkitError> {
        Self::options().start().await
    }

    /// Options to start a server with other settings.
    pub fn options() -> NatsOptions {
        NatsOptions::default()
    }

    fn prepare(options: NatsOptions) -> Result<Self, TestkitError> {
        let found = Search::of_this_process().nats()?;
        let folder = tempfile::Builder::new()
            .prefix("pillarbox-nats-")
            .tempdir()
            .context("making a folder for nats-server")?
            .keep();
        Ok(Self {
            process: Process::new("nats-server", folder),
            program: found.path,
            config: options.config,
            sync_always: options.sync_always,
            port: free_port()?,
            version: found.version,
            anonymous: !options.closed,
        })
    }

    async fn run(&mut self) -> Result<(), TestkitError> {
        let file = self.process.folder().join("server.conf");
        let sync = if self.sync_always { ", sync_interval: always" } else { "" };
        let text = format!(
            "listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: \"{}\"{sync} }}\n{}",
            self.port,
            self.store_dir().display(),
            self.config
        );
        fs::write(&file, text).context("writing nats-server's configuration")?;
        let arguments = ["-c".to_owned(), file.display().to_string()];
        self.process.start(&self.program, &arguments, None)?;
        let url = self.url();
        let mut ended = false;
        let up = eventually("nats-server to answer", START_DEADLINE, async || {
            let answer = if self.anonymous {
                jetstream_answers(&url).await
            } else {
                port_answers(self.port).await
            };
            match answer {
                Ok(()) => Ok(Some(())),
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

    /// Its URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
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

    /// The folder with its streams. To restore an older state, stop the server, replace the folder, and restart it.
    pub fn store_dir(&self) -> PathBuf {
        self.process.folder().join("store")
    }

    /// The folder that holds its configuration, its log and its streams.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }

    /// A client that stays connected.
    ///
    /// # Errors
    /// [`TestkitError::Nats`].
    pub async fn connect(&self) -> Result<async_nats::Client, TestkitError> {
        Ok(async_nats::connect(self.url()).await?)
    }

    /// Kills it (SIGKILL). [`restart`](Self::restart) starts it again.
    ///
    /// # Errors
    /// [`TestkitError::NotRunning`].
    pub fn kill(&self) -> Result<(), TestkitError> {
        self.process.signal(Signal::KILL)
    }

    /// Pauses it (SIGSTOP). Connections stay open, and nothing is answered. When this returns, the server has stopped.
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

    /// Stops it cleanly and waits for it.
    ///
    /// # Errors
    /// [`TestkitError::NotRunning`], [`TestkitError::Deadline`].
    pub async fn stop(&self) -> Result<(), TestkitError> {
        self.process.signal(Signal::INT)?;
        eventually("nats-server to stop", Duration::from_secs(20), async || {
            Ok::<_, TestkitError>((!self.process.is_running()).then_some(()))
        })
        .await
    }

    /// Starts it again on the same port and store, and waits until it answers. If it still runs, it is killed first.
    ///
    /// # Errors
    /// As [`NatsOptions::start`].
    pub async fn restart(&mut self) -> Result<(), TestkitError> {
        self.run().await
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

/// The options to connect to a broker with the login that stands in its URL, as in `nats://user:password@host:port`.
/// async-nats itself does not look for it there. The URL may be a list, with commas in between.
pub fn connect_options(url: &str) -> ConnectOptions {
    let servers = url.split(',').filter_map(|server| server.parse::<ServerAddr>().ok());
    let mut logins = servers.filter_map(|server| {
        Some((server.username()?.to_owned(), server.password().unwrap_or_default().to_owned()))
    });
    match logins.next() {
        Some((user, password)) => ConnectOptions::with_user_and_password(user, password),
        None => ConnectOptions::new(),
    }
}

async fn port_answers(port: u16) -> Result<(), String> {
    tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}

async fn jetstream_answers(url: &str) -> Result<(), String> {
    let client = async_nats::connect(url).await.map_err(|error| error.to_string())?;
    let answer = async_nats::jetstream::new(client).query_account().await;
    answer.map(drop).map_err(|error| error.to_string())
}
