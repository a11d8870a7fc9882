//! A consumer. The effect of each event is a row, written in the handler's transaction.

use std::sync::Arc;
use std::time::Duration;

use pillarbox_consumer::{Consumer, ConsumerConfig, HandlingOrder};
use pillarbox_inbox::{BatchHandler, Handler, HandlerError, Received, Tx};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::event::{Draw, Kind};
use crate::journal::Journal;

/// The settings of a consumer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConsumerRole {
    /// Which consumer it serves.
    pub group: Group,
    /// Where the inbox is.
    pub database_url: String,
    /// The broker's servers, separated by commas.
    pub nats_url: String,
    /// The stream.
    pub stream: String,
    /// Whether a key waits behind its dead letter.
    pub strict: bool,
    /// The number of partitions into which the relays put the keys.
    pub partitions: u32,
    /// How many times longer its times are.
    pub slow: u64,
}

/// The consumers of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Event by event, each key in its order.
    Ledger,
    /// Event by event, in any order, with its processes side by side.
    Audit,
    /// Many events in a transaction, each key in its order.
    Import,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ledger, Self::Audit, Self::Import];

    /// Its name, which is also that of the durable consumer and of its rows in the inbox.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ledger => "ledger",
            Self::Audit => "audit",
            Self::Import => "import",
        }
    }

    /// Whether events of one key are handled in their order.
    pub fn keeps_order(self) -> bool {
        self != Self::Audit
    }

    /// How many processes serve it.
    pub fn processes(self) -> usize {
        if self == Self::Import { 1 } else { 2 }
    }

    fn config(self, role: &ConsumerRole) -> ConsumerConfig {
        let shares = self == Self::Ledger;
        ConsumerConfig {
            order: match (self.keeps_order(), role.strict) {
                (true, true) => HandlingOrder::Strict,
                (true, false) => HandlingOrder::Key,
                (false, _) => HandlingOrder::None,
            },
            partitions: if shares { role.partitions } else { 1 },
            // Without partitions of its own, a consumer names the subjects that contain their numbers.
            filter_subjects: if role.partitions > 1 && !shares {
                vec!["faults.*.drawn".into()]
            } else {
                Vec::new()
            },
            concurrency: 4,
            prefetch: 64,
            batch_size: 25,
            max_attempts: 4,
            backoff: Duration::from_millis(10),
            max_backoff: Duration::from_millis(100),
            handler_timeout: Duration::from_millis(2_000 * role.slow),
            ack_wait: Duration::from_millis(3_000 * role.slow),
            takeover: Duration::from_millis(1_500 * role.slow),
            ..ConsumerConfig::new(role.stream.clone(), self.name())
        }
    }
}

/// What a consumer records.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsumerNote {
    /// A handler received this event.
    Given {
        /// Its id.
        id: String,
    },
    /// How many events were skipped because they were handled, since the process started.
    Skipped {
        /// The number.
        duplicates: u64,
    },
}

impl ConsumerRole {
    pub(super) async fn play(
        self,
        process: &str,
        journal: Journal,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let database: PgConnectOptions = self.database_url.parse()?;
        let pool = PgPoolOptions::new()
            .max_connections(6)
            .acquire_timeout(Duration::from_secs(2))
            .connect_lazy_with(database);
        let client = async_nats::ConnectOptions::new()
            .retry_on_initial_connect()
            .ping_interval(Duration::from_secs(4));
        let servers: Vec<&str> = self.nats_url.split(',').collect();
        let client = client.connect(servers).await?;
        let journal = Arc::new(journal);
        let enter =
            Enter { group: self.group, process: process.to_owned(), journal: journal.clone() };
        let consumer = Consumer::with_config(client, pool, self.group.config(&self))?;
        let status = consumer.status();
        let running = async {
            match self.group {
                Group::Import => consumer.on_batch(enter).run(stop).await,
                Group::Ledger | Group::Audit => consumer.on(enter).run(stop).await,
            }
        };
        let noting = async {
            let (mut each, mut before) = (interval(Duration::from_millis(200)), 0);
            loop {
                each.tick().await;
                let duplicates = status.get().totals.duplicates;
                if duplicates != before {
                    before = duplicates;
                    if let Err(error) = journal.note(ConsumerNote::Skipped { duplicates }) {
                        break error;
                    }
                }
            }
        };
        tokio::select! {
            ended = running => ended?,
            error = noting => return Err(error),
        }
        let duplicates = status.get().totals.duplicates;
        journal.note(ConsumerNote::Skipped { duplicates })
    }
}

/// Writes the effect of an event.
struct Enter {
    group: Group,
    process: String,
    journal: Arc<Journal>,
}

const ENTER: &str = "insert into effect (consumer, process, event_id, key, number, previous)
values ($1, $2, $3, $4, $5, (select max(number) from effect where consumer = $1 and key = $4))";

impl Enter {
    async fn enter(&self, tx: &mut Tx, event: &Received<Draw>) -> Result<(), HandlerError> {
        let id = event.name.as_deref().unwrap_or(event.id().as_str());
        let noted = self.journal.note(ConsumerNote::Given { id: id.to_owned() });
        noted.map_err(|error| HandlerError::transient(error.to_string()))?;
        match event.kind {
            Kind::Refused => return Err(HandlerError::permanent("refused, as it was meant to be")),
            Kind::Stubborn => return Err(HandlerError::transient("fails, as it was meant to")),
            Kind::Killer => {
                sleep(Duration::from_millis(20)).await;
                std::process::abort();
            }
            // Each of these is a handler that does something it must not do.
            Kind::Ender => {
                sqlx::raw_sql("rollback").execute(&mut **tx).await?;
                return Ok(());
            }
            Kind::BackendKiller => {
                let end = "select pg_terminate_backend(pg_backend_pid())";
                sqlx::query(end).execute(&mut **tx).await?;
            }
            Kind::Litterer => {
                let litter = "set search_path = pg_temp; set statement_timeout = '1ms'; set role pg_monitor; \
                              select pg_try_advisory_lock(7); reset role; reset search_path; reset statement_timeout; \
                              set session lock_timeout = '1ms'; create temporary table if not exists inbox (x int)";
                sqlx::raw_sql(litter).execute(&mut **tx).await?;
            }
            _ => {}
        }
        // The id decides, so that the choice is the same each time.
        let chance =
            id.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
        if chance % 101 == 0 && event.attempt() == 1 {
            return Err(HandlerError::transient("fails the first time"));
        }
        if chance % 103 == 0 {
            sleep(Duration::from_millis(100)).await;
        }
        sqlx::query(ENTER)
            .bind(self.group.name())
            .bind(&self.process)
            .bind(id)
            .bind(&event.key)
            .bind(event.number)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

impl Handler<Received<Draw>> for Enter {
    async fn handle(&self, tx: &mut Tx, event: Received<Draw>) -> Result<(), HandlerError> {
        self.enter(tx, &event).await
    }
}

impl BatchHandler<Draw> for Enter {
    async fn handle(&self, tx: &mut Tx, events: &[Received<Draw>]) -> Result<(), HandlerError> {
        // It ends the transaction only if it has this event alone. Otherwise all events that the handler has in hand
        // would become dead letters, and the check would have to know which they were.
        if events.len() > 1 && events.iter().any(|event| event.kind == Kind::Ender) {
            return Err(HandlerError::transient("one of these ends the transaction"));
        }
        for event in events {
            self.enter(tx, event).await?;
        }
        Ok(())
    }
}
