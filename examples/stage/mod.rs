//! What the pattern examples share: servers that end with the program, a relay, a table and a verdict.
#![allow(dead_code, unreachable_pub, reason = "each example uses its part")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use pillarbox::consumer::streams::StreamSpec;
use pillarbox::consumer::{ConsumerStatus, Watch};
use pillarbox::outbox;
use pillarbox::{Consumer, ConsumerConfig, ConsumerError, Router, inbox};
use pillarbox_relay::{Relay, RelayConfig, RelayError};
use pillarbox_testkit::{Scope, Servers};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long any step may take.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Parser)]
pub struct Arguments {
    /// How many events are published.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(i64).range(6..))]
    pub events: i64,
}

/// A broker with a stream, and a producer: a database with an outbox, and its relay.
pub struct Stage {
    servers: Servers,
    producer: Scope,
    relay: JoinHandle<Result<(), RelayError>>,
    shutdown: CancellationToken,
}

impl Stage {
    pub async fn open(stream: StreamSpec) -> anyhow::Result<Self> {
        Self::with_partitions(stream, 1).await
    }

    pub async fn with_partitions(stream: StreamSpec, partitions: u32) -> anyhow::Result<Self> {
        let servers = Servers::start().await?;
        let producer = servers.scope().await?;
        outbox::migrate(producer.pool()).await?;
        stream.ensure(&producer.jetstream()).await?;
        let shutdown = CancellationToken::new();
        let relay = RelayConfig {
            database_url: producer.database_url().into(),
            nats_url: producer.nats_url().into(),
            source: "/examples/producer".into(),
            partitions,
            ..RelayConfig::default()
        };
        let relay = tokio::spawn(Relay::new(relay)?.run(shutdown.clone()));
        Ok(Self { servers, producer, relay, shutdown })
    }

    /// The producer's database.
    pub fn producer(&self) -> &PgPool {
        self.producer.pool()
    }

    pub fn jetstream(&self) -> async_nats::jetstream::Context {
        self.producer.jetstream()
    }

    /// Creates a service's database, with an inbox and its own tables.
    pub async fn database(&self, tables: &'static str) -> anyhow::Result<PgPool> {
        let scope = self.servers.scope().await?;
        inbox::migrate(scope.pool()).await?;
        sqlx::raw_sql(tables).execute(scope.pool()).await?;
        Ok(scope.pool().clone())
    }

    /// Starts a process of a service, with its own connection to the broker.
    pub async fn start(
        &self,
        database: &PgPool,
        config: ConsumerConfig,
        router: Router,
    ) -> anyhow::Result<Process> {
        let client = async_nats::connect(self.producer.nats_url()).await?;
        let consumer = Consumer::with_config(client, database.clone(), config)?;
        let (status, shutdown) = (consumer.status(), CancellationToken::new());
        let running = tokio::spawn(consumer.router(router).run(shutdown.clone()));
        Ok(Process { status, running, shutdown })
    }

    pub async fn close(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        Ok(self.relay.await??)
    }
}

/// A running consumer.
pub struct Process {
    pub status: Watch,
    running: JoinHandle<Result<(), ConsumerError>>,
    shutdown: CancellationToken,
}

impl Process {
    /// Waits until the status satisfies a condition.
    pub async fn until(
        &self,
        what: &str,
        wanted: impl FnMut(&ConsumerStatus) -> bool,
    ) -> anyhow::Result<ConsumerStatus> {
        let mut watch = self.status.clone();
        match tokio::time::timeout(DEADLINE, watch.until(wanted)).await {
            Ok(Some(status)) => Ok(status),
            _ => bail!("waited for {what}; the status is {:?}", self.status.get()),
        }
    }

    /// Stops it, and lets it finish what it has begun.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        Ok(self.running.await??)
    }

    /// Drops it at any point of its work, as a crash would.
    pub async fn kill(self) {
        self.running.abort();
        let _ = self.running.await;
    }
}

/// The one number that a query returns.
pub async fn number(database: &PgPool, sql: &str) -> anyhow::Result<i64> {
    let sql = AssertSqlSafe(sql.to_owned());
    Ok(sqlx::query_scalar::<_, i64>(sql).fetch_one(database).await?)
}

/// Waits until a query returns at least this number.
pub async fn reaches(database: &PgPool, sql: &str, wanted: i64) -> anyhow::Result<()> {
    let reached = async {
        while number(database, sql).await? < wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, reached)
        .await
        .with_context(|| format!("{sql} has not reached {wanted}"))?
}

/// The verdict: checks claims and counts those that do not hold.
#[derive(Default)]
pub struct Verdict {
    wrong: usize,
}

impl Verdict {
    /// Prints the claim, and whether it holds.
    pub fn claim<T: PartialEq + std::fmt::Debug>(&mut self, claim: &str, found: T, right: T) {
        if found == right {
            println!("  ok    {claim}");
        } else {
            self.wrong += 1;
            println!("  FAIL  {claim}: found {found:?}, expected {right:?}");
        }
    }

    pub fn end(self) -> ExitCode {
        if self.wrong == 0 {
            println!("VERDICT: all is well");
            ExitCode::SUCCESS
        } else {
            println!("VERDICT: {} of the claims do not hold", self.wrong);
            ExitCode::FAILURE
        }
    }
}
