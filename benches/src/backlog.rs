//! Outboxes filled with events.

use anyhow::Result;
use pillarbox_testkit::{Database, Postgres};
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

/// The size of a payload, in bytes.
pub const PAYLOAD_BYTES: i32 = 256;
/// The subject of all events, which the streams of the benchmarks take.
pub const SUBJECT: &str = "shop.placed";
/// The type of all events.
pub const EVENT_TYPE: &str = "order.placed";

/// The largest number of events in a transaction that fills an outbox. No real writer commits millions at once.
const AT_A_TIME: u64 = 500_000;

/// A database with an outbox.
#[derive(Debug)]
pub struct Outbox {
    name: String,
    admin_url: String,
    database: Database,
}

impl Outbox {
    /// Creates a new, empty one.
    ///
    /// # Errors
    /// The error of Postgres.
    pub async fn create(postgres: &Postgres) -> Result<Self> {
        let name = format!("bench_{}", Uuid::new_v4().simple());
        let database = postgres.create_database(&name).await?;
        pillarbox::outbox::migrate(&database.pool).await?;
        Ok(Self { name, admin_url: postgres.url("postgres"), database })
    }

    /// Creates a new one with a backlog, which is written to disk.
    ///
    /// # Errors
    /// The error of Postgres.
    pub async fn with_backlog(postgres: &Postgres, events: u64, keys: Option<u64>) -> Result<Self> {
        let outbox = Self::create(postgres).await?;
        outbox.fill(events, keys).await?;
        sqlx::raw_sql("vacuum analyze pillarbox.outbox").execute(outbox.pool()).await?;
        outbox.settle().await?;
        Ok(outbox)
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.database.url
    }

    /// Its connections.
    pub fn pool(&self) -> &PgPool {
        &self.database.pool
    }

    /// Commits this many events, over this many keys in turn. `None` means without keys.
    ///
    /// # Errors
    /// The error of Postgres.
    pub async fn fill(&self, events: u64, keys: Option<u64>) -> Result<()> {
        let keys = keys.map(i64::try_from).transpose()?;
        let mut filled = 0;
        while filled < events {
            let last = events.min(filled + AT_A_TIME);
            sqlx::query(
                "insert into pillarbox.outbox (event_type, topic, key, payload) \
                 select $1, $2, (i % $3)::text, convert_to(repeat('x', $4), 'utf8') \
                 from generate_series($5, $6) i",
            )
            .bind(EVENT_TYPE)
            .bind(SUBJECT)
            .bind(keys)
            .bind(PAYLOAD_BYTES)
            .bind(i64::try_from(filled + 1)?)
            .bind(i64::try_from(last)?)
            .execute(self.pool())
            .await?;
            filled = last;
        }
        Ok(())
    }

    /// Writes everything to disk, so that this does not happen during a measurement.
    ///
    /// # Errors
    /// The error of Postgres.
    pub async fn settle(&self) -> Result<()> {
        sqlx::raw_sql("checkpoint").execute(self.pool()).await?;
        Ok(())
    }

    /// Begins a transaction that has an id and writes an event, and leaves it open.
    ///
    /// # Errors
    /// The error of Postgres.
    pub async fn leave_open(&self) -> Result<PgConnection> {
        let mut connection = PgConnection::connect(self.url()).await?;
        sqlx::raw_sql("begin").execute(&mut connection).await?;
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, payload) \
             values ($1, $2, 'never committed')",
        )
        .bind(EVENT_TYPE)
        .bind(SUBJECT)
        .execute(&mut connection)
        .await?;
        Ok(connection)
    }

    /// Drops the database.
    ///
    /// # Errors
    /// The error of Postgres.
    pub async fn remove(self) -> Result<()> {
        self.database.pool.close().await;
        let mut connection = PgConnection::connect(&self.admin_url).await?;
        let drop = format!("drop database {} with (force)", self.name);
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await?;
        Ok(())
    }
}
