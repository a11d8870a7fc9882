//! The servers, the services on them, and what the example does to them.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::stream::{Config, Stream};
use pillarbox::event::header;
use pillarbox::{inbox, outbox};
use pillarbox_testkit::{Scope, Servers};
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::books::{Books, Trip};
use crate::events::PROVIDERS;
use crate::process::Process;
use crate::provider;
use crate::service::STREAM;

/// How long each step of the example may take.
const DEADLINE: Duration = Duration::from_secs(60);

pub struct World {
    _servers: Servers,
    saga: Scope,
    providers: HashMap<&'static str, Scope>,
    stream: Stream,
    processes: Vec<Process>,
    /// How many messages were delivered again.
    again: u64,
}

impl World {
    pub async fn open() -> anyhow::Result<Self> {
        let servers = Servers::start().await?;
        let saga = servers.scope().await?;
        inbox::migrate(saga.pool()).await?;
        outbox::migrate(saga.pool()).await?;
        let mut providers = HashMap::new();
        for name in PROVIDERS {
            let scope = servers.scope().await?;
            inbox::migrate(scope.pool()).await?;
            outbox::migrate(scope.pool()).await?;
            sqlx::raw_sql(provider::TABLES).execute(scope.pool()).await?;
            providers.insert(name, scope);
        }
        let stream = Config {
            name: STREAM.into(),
            subjects: vec!["trips.>".into(), "commands.>".into(), "answers.>".into()],
            // Shorter than the inboxes remember.
            max_age: Duration::from_secs(24 * 60 * 60),
            allow_batch_publish: true,
            ..Config::default()
        };
        let stream = saga.jetstream().create_stream(stream).await?;
        let mut world =
            Self { _servers: servers, saga, providers, stream, processes: Vec::new(), again: 0 };
        world.start()?;
        Ok(world)
    }

    /// The database of the saga, in which trips are requested.
    pub fn trips(&self) -> &PgPool {
        self.saga.pool()
    }

    fn scopes(&self) -> impl Iterator<Item = (&str, &Scope)> {
        std::iter::once(("trips", &self.saga))
            .chain(self.providers.iter().map(|(name, scope)| (*name, scope)))
    }

    /// Starts a process of its own for each service, and one for the relays.
    fn start(&mut self) -> anyhow::Result<()> {
        let nats = ["--nats".to_owned(), self.saga.nats_url().to_owned()];
        let addresses = |scope: &Scope| {
            nats.clone()
                .into_iter()
                .chain(["--database".to_owned(), scope.database_url().to_owned()])
        };
        let start = |name, arguments| Process::start(name, arguments);
        let mut processes = vec![start(
            "saga",
            std::iter::once("saga".to_owned()).chain(addresses(&self.saga)).collect(),
        )?];
        for name in PROVIDERS {
            let role = ["provider".to_owned(), name.to_owned()].into_iter();
            processes.push(start(name, role.chain(addresses(&self.providers[name])).collect())?);
        }
        let outboxes =
            self.scopes().map(|(name, scope)| format!("{name}={}", scope.database_url()));
        let relays = std::iter::once("relays".to_owned()).chain(nats.clone()).chain(outboxes);
        processes.push(start("relays", relays.collect())?);
        self.processes = processes;
        Ok(())
    }

    /// Kills the process of this name (SIGKILL), wherever it is, and starts it again. Returns the id of the killed one.
    pub async fn kill_and_restart(&mut self, name: &str) -> anyhow::Result<u32> {
        let mut processes = self.processes.iter_mut();
        let process =
            processes.find(|process| process.name() == name).context("no such process")?;
        let pid = process.pid();
        process.kill().await?;
        process.restart()?;
        Ok(pid)
    }

    pub async fn payment_is_away(&self, away: bool) -> anyhow::Result<()> {
        let payment = self.providers["payment"].pool();
        sqlx::query("update provider set away = $1").bind(away).execute(payment).await?;
        Ok(())
    }

    /// Waits until this many trips have ended.
    pub async fn until_ended(&self, trips: i64) -> anyhow::Result<()> {
        let sql = "select count(*) from pillarbox.saga where ended_at is not null";
        until("trips to end", async || Ok(number(self.trips(), sql).await? >= trips)).await
    }

    /// Waits until every event is in the stream, every consumer has handled it, and nothing is scheduled.
    pub async fn until_quiet(&self) -> anyhow::Result<()> {
        until("everything to be handled", async || {
            let said = self.said().await?;
            let mut quiet = self.stream.get_info().await?.state.messages >= said + self.again;
            for (name, scope) in self.scopes() {
                let consumer = self.stream.consumer_info(name).await?;
                quiet &= consumer.num_pending == 0 && consumer.num_ack_pending == 0;
                quiet &= number(scope.pool(), "select count(*) from pillarbox.outbox_scheduled")
                    .await?
                    == 0;
            }
            Ok(quiet && said == self.said().await?)
        })
        .await
    }

    /// How many events are in the outboxes.
    async fn said(&self) -> anyhow::Result<u64> {
        let mut said = 0;
        for (_, scope) in self.scopes() {
            said += u64::try_from(
                number(scope.pool(), "select count(*) from pillarbox.outbox").await?,
            )?;
        }
        Ok(said)
    }

    pub async fn forget(&self) -> anyhow::Result<()> {
        for (_, scope) in self.scopes() {
            sqlx::raw_sql("delete from pillarbox.inbox").execute(scope.pool()).await?;
        }
        Ok(())
    }

    /// Publishes every message of the stream again. They keep their event ids but get new message ids, so the broker
    /// takes them for new messages, and only the inboxes can recognise them.
    pub async fn deliver_all_again(&mut self) -> anyhow::Result<u64> {
        let last = self.stream.get_info().await?.state.last_sequence;
        let jetstream = self.saga.jetstream();
        for sequence in 1..=last {
            let message = self.stream.get_raw_message(sequence).await?;
            let mut headers = message.headers;
            headers.insert(header::NATS_MSG_ID, format!("again-{sequence}"));
            jetstream
                .publish_with_headers(message.subject, headers, message.payload)
                .await?
                .await?;
        }
        self.again = last;
        Ok(last)
    }

    pub async fn books(&self, requested: i64, requested_again: i64) -> anyhow::Result<Books> {
        let mut books = Books { requested, requested_again, ..Books::default() };
        let rows = sqlx::query(include_str!("trips.sql")).fetch_all(self.trips()).await?;
        for row in rows {
            let trip: i64 = row.try_get("trip")?;
            let of = |is: fn(&str, i64) -> bool| PROVIDERS.into_iter().find(|name| is(name, trip));
            books.trips.push(Trip {
                trip,
                status: row.try_get("status")?,
                failure: row.try_get("failure")?,
                cents: row.try_get("cents")?,
                asked: row.try_get("asked")?,
                cancels: row.try_get("cancels")?,
                handled: row.try_get("handled")?,
                requested_again: row.try_get("requested_again")?,
                late: row.try_get("late")?,
                refused_by: of(provider::refuses),
                late_by: of(provider::answers_late),
            });
        }
        for (name, scope) in &self.providers {
            let rows: Vec<(i64, String, i64)> =
                sqlx::query_as("select trip, kind, cents from ledger")
                    .fetch_all(scope.pool())
                    .await?;
            for (trip, kind, cents) in rows {
                let account = books.ledger.entry(((*name).to_owned(), trip)).or_default();
                let page =
                    if kind == "book" { &mut account.booked } else { &mut account.cancelled };
                page.push(cents);
            }
        }
        for (name, scope) in self.scopes() {
            for (table, what) in [
                ("inbox_dead_letter", "dead letters"),
                ("inbox_failure", "events in retry"),
                ("outbox_scheduled", "timers"),
                ("outbox_dead_letter", "events that could not be shipped"),
            ] {
                match number(scope.pool(), &format!("select count(*) from pillarbox.{table}"))
                    .await?
                {
                    0 => {}
                    count => books.left_over.push(format!("{name}: {count} {what}")),
                }
            }
        }
        Ok(books)
    }

    /// Stops everything, and returns the first error.
    pub async fn close(self) -> anyhow::Result<()> {
        let stopped =
            futures::future::join_all(self.processes.into_iter().map(Process::stop)).await;
        stopped.into_iter().collect()
    }
}

async fn number(pool: &PgPool, sql: &str) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await?)
}

async fn until(what: &str, is_so: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let waiting = async {
        while !is_so().await? {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, waiting).await.with_context(|| format!("waited for {what}"))?
}
