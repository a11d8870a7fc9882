//! The servers that one process shares, and a place of its own on them for each test.

use sqlx::postgres::PgPool;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::error::TestkitError;
use crate::nats::{Nats, connect_options};
use crate::postgres::{Database, Postgres};

/// One Postgres and one nats-server.
#[derive(Debug)]
pub struct Servers {
    /// The Postgres.
    pub postgres: Postgres,
    /// The nats-server.
    pub nats: Nats,
}

/// The servers that all tests of this process share. The first call starts them, and they end with the process.
///
/// # Errors
/// Any [`TestkitError`]; the next call tries again.
pub async fn servers() -> Result<&'static Servers, TestkitError> {
    static SERVERS: OnceCell<Servers> = OnceCell::const_new();
    SERVERS.get_or_try_init(Servers::start).await
}

impl Servers {
    /// Starts a new pair of servers.
    ///
    /// # Errors
    /// Any [`TestkitError`].
    pub async fn start() -> Result<Self, TestkitError> {
        let (postgres, nats) = tokio::try_join!(Postgres::start(), Nats::start())?;
        eprintln!("testkit: using {} and {}", postgres.version(), nats.version());
        Ok(Self { postgres, nats })
    }

    /// A new database, a prefix that no other test uses, and a client.
    ///
    /// # Errors
    /// Any [`TestkitError`].
    pub async fn scope(&self) -> Result<Scope, TestkitError> {
        Scope::on(&self.postgres, &self.nats.url()).await
    }
}

/// A test's own place: a database, and a prefix for its streams and subjects. Its connections belong to the runtime
/// that made them, and each `#[tokio::test]` has its own runtime.
#[derive(Clone, Debug)]
pub struct Scope {
    prefix: String,
    database: Database,
    nats_url: String,
    nats: async_nats::Client,
}

impl Scope {
    /// A new database on this Postgres, and a prefix that no other test uses on this broker, which is a server or a
    /// cluster.
    ///
    /// # Errors
    /// Any [`TestkitError`].
    pub async fn on(postgres: &Postgres, nats_url: &str) -> Result<Self, TestkitError> {
        let prefix = format!("t{}", &Uuid::new_v4().simple().to_string()[..12]);
        let database = postgres.create_database(&prefix).await?;
        let servers: Vec<&str> = nats_url.split(',').collect();
        let nats = connect_options(nats_url).connect(&*servers).await?;
        Ok(Self { prefix, database, nats_url: nats_url.to_owned(), nats })
    }

    /// A word that can be a stream's name and the first word of a subject.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The database's URL.
    pub fn database_url(&self) -> &str {
        &self.database.url
    }

    /// A pool on the database.
    pub fn pool(&self) -> &PgPool {
        &self.database.pool
    }

    /// The broker's URL.
    pub fn nats_url(&self) -> &str {
        &self.nats_url
    }

    /// A connected client.
    pub fn nats(&self) -> &async_nats::Client {
        &self.nats
    }

    /// The JetStream context of [`nats`](Self::nats).
    pub fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.nats.clone())
    }
}
