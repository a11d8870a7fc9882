//! The servers, the processes and the tables of a run.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream::{self, consumer, stream};
use futures::StreamExt;
use pillarbox_relay::{RelayConfig, ShippingOrder, SinkChoice};
use pillarbox_testkit::pgbouncer::PoolMode;
use pillarbox_testkit::{PgBouncer, Postgres, Proxy};
use sqlx::PgPool;
use tokio::sync::Mutex;

use crate::broker::Broker;
use crate::fault::Target;
use crate::foreign::name_in;
use crate::history::{Loss, Made, Stored};
use crate::journal::{At, Journal};
use crate::options::Options;
use crate::process::Process;
use crate::role::{ConsumerRole, Group, RelayRole, Role, WriterRole, key_name};
use crate::trips::{self, TripRole};
use crate::wire::{InStream, Wire};

/// The stream of a run.
pub(crate) const STREAM: &str = "FAULTS";
/// The largest message that the broker accepts, in bytes.
pub(crate) const MAX_PAYLOAD: usize = 64 * 1024;

/// The servers, the processes and the tables of a run.
pub(crate) struct World {
    /// Journals and logs.
    pub(crate) folder: PathBuf,
    pub(crate) postgres: Mutex<Postgres>,
    pub(crate) nats: Mutex<Broker>,
    /// Held by a fault while the stream has limits that are not its own.
    pub(crate) limits: Mutex<()>,
    /// The poolers through which writers and consumers connect, if there are any.
    poolers: Option<Poolers>,
    pub(crate) strict: bool,
    /// Whether there are trips.
    pub(crate) saga: bool,
    /// The database of the outbox.
    pub(crate) outbox: PgPool,
    /// The database of the inbox.
    pub(crate) inbox: PgPool,
    outbox_url: String,
    nats_url: String,
    /// The ports of the broker's servers.
    pub(crate) nats_ports: Vec<u16>,
    /// The number of partitions into which the relays put the keys.
    pub(crate) partitions: u32,
    pub(crate) relays: Vec<Process>,
    pub(crate) consumers: Vec<Process>,
    pub(crate) writers: Vec<Process>,
    /// The journal of what the faults themselves write.
    pub(crate) journal: Journal,
    record: StdMutex<Record>,
    turn: AtomicUsize,
    keys: u32,
}

/// What the run itself did and observed.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) made: Vec<Made>,
    pub(crate) losses: Vec<Loss>,
    pub(crate) stored: Vec<Stored>,
    looks: usize,
    pub(crate) ended: Vec<(At, String)>,
}

impl World {
    /// Starts the servers, and creates the tables and the stream. No process runs yet.
    pub(crate) async fn make(
        options: &Options,
        seed: u64,
        program: PathBuf,
        folder: PathBuf,
    ) -> anyhow::Result<Self> {
        let postgres = Postgres::options().setting("max_connections", "90");
        let limit = format!("max_payload: {MAX_PAYLOAD}");
        let nats = Broker::start(options.cluster, &limit);
        let (postgres, nats) =
            tokio::try_join!(async { anyhow::Ok(postgres.start().await?) }, nats)?;
        let poolers = match options.pooler {
            true => Some(Poolers::start(&postgres).await?),
            false => None,
        };
        let outbox = postgres.create_database("service").await?;
        let inbox = postgres.create_database("consumers").await?;
        pillarbox_outbox::migrate(&outbox.pool).await?;
        pillarbox_inbox::migrate(&inbox.pool).await?;
        sqlx::raw_sql(include_str!("service.sql")).execute(&outbox.pool).await?;
        sqlx::raw_sql(include_str!("consumers.sql")).execute(&inbox.pool).await?;
        if options.saga {
            pillarbox_inbox::migrate(&outbox.pool).await?;
            sqlx::raw_sql(trips::TABLES).execute(&outbox.pool).await?;
        }
        if let Some(protection) = options.switched_off {
            protection.apply(&outbox.pool, &inbox.pool, options.saga).await?;
        }
        let keys: Vec<String> = (0..options.keys).map(key_name).collect();
        sqlx::query("insert into counter (key) select unnest($1::text[])")
            .bind(keys)
            .execute(&outbox.pool)
            .await?;
        let mut world = Self {
            journal: Journal::open(&folder.join("faults.journal"))?,
            outbox_url: outbox.url,
            nats_url: nats.url(),
            nats_ports: nats.ports(),
            partitions: options.partitions,
            outbox: outbox.pool,
            inbox: inbox.pool,
            postgres: Mutex::new(postgres),
            nats: Mutex::new(nats),
            limits: Mutex::default(),
            poolers,
            strict: options.strict,
            saga: options.saga,
            relays: Vec::new(),
            consumers: Vec::new(),
            writers: Vec::new(),
            record: StdMutex::default(),
            turn: AtomicUsize::new(0),
            keys: options.keys,
            folder,
        };
        world.create_stream().await?;
        world.cast(options, seed, program, &inbox.url).await?;
        Ok(world)
    }

    /// Gives the processes their roles.
    async fn cast(
        &mut self,
        options: &Options,
        seed: u64,
        program: PathBuf,
        inbox_url: &str,
    ) -> anyhow::Result<()> {
        let ports = (self.postgres.lock().await.port(), self.nats.lock().await.port());
        let poolers = self.poolers.as_ref();
        let of_writers = poolers.map(|poolers| poolers.of_writers.port());
        let of_consumers = poolers.map(|poolers| poolers.of_consumers.port());
        let make = async |name: String, pooler: Option<u16>, role: &dyn Fn(&Ways) -> Role| {
            let ways = Ways {
                database: Proxy::to_port(pooler.unwrap_or(ports.0)).await?,
                broker: Proxy::to_port(ports.1).await?,
                ports,
            };
            let role = role(&ways);
            let proxies = (ways.database, ways.broker);
            anyhow::Ok(Process::new(name, proxies, program.clone(), self.folder.clone(), role))
        };
        let (mut relays, mut consumers, mut writers) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..options.relays {
            let role = |ways: &Ways| {
                Role::Relay(RelayRole {
                    config: Box::new(RelayConfig {
                        database_url: ways.to_database(&self.outbox_url),
                        nats_url: ways.to_broker(&self.nats_url),
                        lease: Duration::from_millis(1_500 * options.slow),
                        ack_timeout: Duration::from_millis(2_000 * options.slow),
                        // Use both ways of storing in turn.
                        order: if options.strict {
                            ShippingOrder::Strict
                        } else {
                            ShippingOrder::Key
                        },
                        partitions: options.partitions,
                        sink: if number == 1 { SinkChoice::KeyedWindow } else { SinkChoice::Auto },
                        ..RelayConfig::default()
                    }),
                })
            };
            relays.push(make(format!("relay{number}"), None, &role).await?);
        }
        for group in Group::ALL {
            for number in 0..group.processes() {
                let role = |ways: &Ways| {
                    Role::Consumer(ConsumerRole {
                        group,
                        database_url: ways.to_database(inbox_url),
                        nats_url: ways.to_broker(&self.nats_url),
                        stream: STREAM.into(),
                        strict: options.strict,
                        partitions: options.partitions,
                        slow: options.slow,
                    })
                };
                let name = format!("{}{number}", group.name());
                consumers.push(make(name, of_consumers, &role).await?);
            }
        }
        for name in trips::consumers().filter(|_| options.saga) {
            let role = |ways: &Ways| {
                Role::Trip(TripRole {
                    name: name.to_owned(),
                    database_url: ways.to_database(&self.outbox_url),
                    nats_url: ways.to_broker(&self.nats_url),
                    stream: STREAM.into(),
                    partitioned: options.partitions > 1,
                    slow: options.slow,
                })
            };
            consumers.push(make(name.to_owned(), of_consumers, &role).await?);
        }
        for number in 0..options.writers {
            let role = |ways: &Ways| {
                Role::Writer(WriterRole {
                    database_url: ways.to_database(&self.outbox_url),
                    seed: seed.wrapping_add(number),
                    sessions: 2,
                    keys: options.keys,
                    pause_ms: options.pause_ms,
                    pooled: of_writers.is_some(),
                    saga: options.saga,
                })
            };
            writers.push(make(format!("writer{number}"), of_writers, &role).await?);
        }
        (self.relays, self.consumers, self.writers) = (relays, consumers, writers);
        Ok(())
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Process> {
        self.relays.iter().chain(&self.consumers).chain(&self.writers)
    }

    pub(crate) fn outbox_url(&self) -> &str {
        &self.outbox_url
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// A process for a fault.
    pub(crate) async fn pick(&self, target: Target) -> &Process {
        let among = match target {
            Target::Relay => &self.relays,
            Target::Consumer => &self.consumers,
            Target::Writer => &self.writers,
        };
        let leader = match target {
            Target::Relay => self.leader().await,
            _ => None,
        };
        leader.unwrap_or_else(|| &among[self.next_turn() % among.len()])
    }

    async fn leader(&self) -> Option<&Process> {
        let holder = "select holder from pillarbox.relay where expires_at > clock_timestamp()";
        let asked = sqlx::query_scalar::<_, Option<String>>(holder).fetch_one(&self.outbox);
        let holder = tokio::time::timeout(Duration::from_secs(1), asked).await.ok()?.ok()??;
        let pid: u32 = holder.split('/').nth(1)?.parse().ok()?;
        for relay in &self.relays {
            if relay.life().await.pid() == Some(pid) {
                return Some(relay);
            }
        }
        None
    }

    /// A key that writers draw from.
    pub(crate) fn some_key(&self) -> String {
        let turn = u32::try_from(self.next_turn()).unwrap_or(0);
        key_name(turn.wrapping_mul(7) % self.keys)
    }

    /// A key that no writer draws from.
    pub(crate) fn long_key(&self) -> String {
        format!("long{}", self.next_turn())
    }

    pub(crate) fn transaction_name(&self) -> String {
        format!("fault.{}", self.next_turn())
    }

    pub(crate) async fn jetstream(&self) -> anyhow::Result<jetstream::Context> {
        let servers: Vec<&str> = self.nats_url.split(',').collect();
        Ok(jetstream::new(async_nats::connect(servers).await?))
    }

    pub(crate) async fn create_stream(&self) -> anyhow::Result<()> {
        let config = stream::Config {
            name: STREAM.into(),
            subjects: vec!["faults.>".into()],
            allow_batch_publish: true,
            num_replicas: self.nats.lock().await.replicas(),
            ..Default::default()
        };
        self.jetstream().await?.create_stream(config).await?;
        Ok(())
    }

    /// The durable consumers, and how far they are.
    pub(crate) async fn durables(&self) -> anyhow::Result<Vec<(&'static str, consumer::Info)>> {
        let stream = self.jetstream().await?.get_stream(STREAM).await?;
        let groups = Group::ALL.into_iter().map(Group::name);
        let known: Vec<_> = groups.chain(trips::consumers().filter(|_| self.saga)).collect();
        let mut all = Vec::new();
        let mut names = stream.consumer_names();
        while let Some(name) = names.next().await {
            let name = name?;
            // With partitions, each has one, with its number after the name.
            let of = |known: &&str| {
                let rest = name.strip_prefix(known);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("-p"))
            };
            if let Some(known) = known.iter().copied().find(of) {
                all.push((known, stream.consumer_info(&name).await?));
            }
        }
        anyhow::ensure!(all.len() >= known.len(), "not every consumer has begun");
        Ok(all)
    }

    /// Adds what the stream holds now to the record, and returns the number of this look.
    pub(crate) async fn keep_what_is_stored(&self) -> anyhow::Result<usize> {
        let held = Wire::connect(&self.nats_ports).await?.all_of(STREAM).await?;
        let mut record = self.record();
        record.looks += 1;
        let look = record.looks;
        record.stored.extend(held.into_iter().map(|InStream { sequence, at, message }| {
            let id = name_in(&message.payload).or_else(|| message.header("ce-id"));
            Stored { id: id.unwrap_or_default(), look, sequence, at }
        }));
        Ok(look)
    }

    /// The places that the stream holds now: their sequences, and when each was stored.
    pub(crate) async fn places(&self) -> anyhow::Result<HashSet<(u64, At)>> {
        let held = Wire::connect(&self.nats_ports).await?.all_of(STREAM).await?;
        Ok(held.into_iter().map(|held| (held.sequence, held.at)).collect())
    }
}

/// The poolers of a run. There are two, because a consumer refuses a pooler in transaction mode.
struct Poolers {
    /// In transaction mode.
    of_writers: PgBouncer,
    /// In session mode.
    of_consumers: PgBouncer,
}

impl Poolers {
    async fn start(postgres: &Postgres) -> anyhow::Result<Self> {
        let of_writers = PgBouncer::options().mode(PoolMode::Transaction).start(postgres).await?;
        let of_consumers = PgBouncer::options()
            .mode(PoolMode::Session)
            .setting("default_pool_size", "40")
            .start(postgres)
            .await?;
        let missing =
            "--pooler needs PgBouncer, and there is none: install it, or leave --pooler out";
        Ok(Self {
            of_writers: of_writers.context(missing)?,
            of_consumers: of_consumers.context(missing)?,
        })
    }
}

/// The proxies between a process and the servers.
struct Ways {
    database: Proxy,
    broker: Proxy,
    ports: (u16, u16),
}

impl Ways {
    fn to_database(&self, url: &str) -> String {
        url.replace(&format!(":{}/", self.ports.0), &format!(":{}/", self.database.port()))
    }

    fn to_broker(&self, url: &str) -> String {
        url.replace(&format!(":{}", self.ports.1), &format!(":{}", self.broker.port()))
    }
}
