//! How long an event takes from the writer to the end of its handler, against a bare publish and receive.
//!
//! Both variants get 256-byte events at a constant rate, from a clock that never waits. Latency counts from the time at
//! which an event was due, so a delay also counts for the events that had to wait behind it
//! ([coordinated omission](https://www.scylladb.com/2021/04/22/on-coordinated-omission/)).
//!
//! - *publish → receive*: a JetStream publish, received by a pull consumer.
//! - *due → handled*: a transaction with a row and an event; the relay; a consumer whose handler inserts a row,
//!   until its transaction is committed. All with the default settings.
//! - *commit → handled*: the same events, from the answer to the writer's `commit`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::consumer::{AckPolicy, pull};
use clap::Args;
use futures::StreamExt;
use pillarbox::event::RawEvent;
use pillarbox::inbox::{Delivery, migrate};
use pillarbox::{Consumer, ConsumerConfig, Router};
use pillarbox_testkit::Servers;
use serde::Serialize;
use sqlx::{Connection, PgConnection};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt};

use super::inbox_rate::{EFFECTS, record};
use crate::backlog::{EVENT_TYPE, Outbox, PAYLOAD_BYTES, SUBJECT};
use crate::plot::{Curve, Plot};
use crate::program::{Findings, Subject};
use crate::raw;
use crate::rounds::interleaved;
use crate::shipping::{STREAM, Shipping, config, context, new_stream};
use crate::statistics::{percentile, sorted};
use crate::table::Table;
use crate::unit::{Goal, Unit, count};

const KEYS: u64 = 1000;
const BARE: &str = "publish → receive";
const WHOLE: &str = "due → handled";
const AFTER_COMMIT: &str = "commit → handled";
const WRITING: &str = "due → commit";
const COLUMNS: [&str; 4] = [BARE, WHOLE, AFTER_COMMIT, WRITING];
const SHARES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct DeliveryLatency {
    /// Seconds of each round that count.
    #[arg(default_value_t = 10)]
    seconds: u64,
    /// Rounds that count.
    #[arg(default_value_t = 3)]
    rounds: usize,
    /// Events per second.
    #[arg(long, default_value_t = 1_000)]
    rate: u64,
    /// Connections that write; also the most transactions at the same time.
    #[arg(long, default_value_t = 8)]
    writers: usize,
    /// Seconds at the beginning of each round that do not count.
    #[arg(long, default_value_t = 2)]
    warm_up: u64,
}

impl Subject for DeliveryLatency {
    const NAME: &'static str = "delivery_latency";

    fn quick() -> Self {
        Self { seconds: 1, rounds: 0, rate: 100, writers: 4, warm_up: 0 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        println!("\n{} events per second for {} s; p50 and p99 in ms", self.rate, self.seconds);
        let show = |round: &str, measured: &[Vec<Vec<f64>>]| {
            print!("{round:>8}");
            for (name, latencies) in COLUMNS.iter().zip(measured.concat()) {
                let (p50, p99) = (percentile(&latencies, 0.5), percentile(&latencies, 0.99));
                print!("  {name}: {p50:.2}, {p99:.2}");
            }
            println!();
        };
        let measure = async |way, _| match way {
            0 => self.bare(servers).await,
            _ => self.whole(servers).await,
        };
        let ways = interleaved(2, self.rounds, measure, show).await?;
        // For each variant, the latencies of each round in ascending order.
        let columns: Vec<Vec<Vec<f64>>> = ways
            .into_iter()
            .flat_map(|rounds| {
                let columns = rounds.first().map_or(0, Vec::len);
                (0..columns).map(move |c| rounds.iter().map(|round| round[c].clone()).collect())
            })
            .collect();
        let mut tables = Vec::new();
        for (name, share) in SHARES {
            let title = format!("Latency at {} events per second, {name}", count(self.rate));
            let figures = columns.iter().map(|rounds| {
                rounds.iter().map(|latencies| percentile(latencies, share)).collect()
            });
            let mut table = Table::of(&title, Unit::Milliseconds, COLUMNS.into_iter().zip(figures));
            table.print();
            let goal = match name {
                "p50" => Some(Goal::AtMost(5.0)),
                "p99" => Some(Goal::AtMost(20.0)),
                _ => None,
            };
            table.difference(AFTER_COMMIT, BARE, goal)?;
            table.difference(WHOLE, BARE, goal)?;
            tables.push(table);
        }
        let curves = COLUMNS.into_iter().zip(&columns).map(|(name, rounds)| Curve {
            name: name.to_owned(),
            sorted: sorted(&rounds.concat()),
        });
        Ok(Findings { tables, plot: Plot::Percentiles(curves.collect()) })
    }
}

/// When events were due and when they arrived, in nanoseconds since the beginning.
struct Moments {
    begin: Instant,
    interval: Duration,
    committed: Vec<AtomicU64>,
    arrived: Vec<AtomicU64>,
}

impl Moments {
    fn due(&self, event: u64) -> Instant {
        self.begin + self.interval * event as u32
    }

    /// Records that an event has reached this point. Only the first time counts.
    fn note(&self, moments: &[AtomicU64], event: u64) {
        let now = self.begin.elapsed().as_nanos() as u64;
        if let Some(moment) = moments.get(event as usize) {
            let _ = moment.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn all_arrived(&self) -> bool {
        self.arrived.iter().all(|moment| moment.load(Ordering::Relaxed) > 0)
    }

    /// The latencies of all events except the first `skipped`, in milliseconds, in ascending order.
    fn latencies(&self, skipped: u64, from: impl Fn(u64) -> u64, to: &[AtomicU64]) -> Vec<f64> {
        let latency = |event: u64| {
            let end = to[event as usize].load(Ordering::Relaxed);
            end.saturating_sub(from(event)) as f64 / 1e6
        };
        sorted(&(skipped..to.len() as u64).map(latency).collect::<Vec<_>>())
    }
}

impl DeliveryLatency {
    fn moments(&self) -> Arc<Moments> {
        let events = (self.rate * (self.warm_up + self.seconds)) as usize;
        let nothing = || (0..events).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Moments {
            begin: Instant::now() + Duration::from_millis(500),
            interval: Duration::from_secs(1) / self.rate as u32,
            committed: nothing(),
            arrived: nothing(),
        })
    }

    /// The latencies from when events were due.
    fn since_due(&self, moments: &Moments, to: &[AtomicU64]) -> Vec<f64> {
        let interval = moments.interval.as_nanos() as u64;
        moments.latencies(self.rate * self.warm_up, |event| event * interval, to)
    }

    async fn bare(&self, servers: &Servers) -> Result<Vec<Vec<f64>>> {
        let stream = new_stream(&servers.nats).await?;
        let config = pull::Config { ack_policy: AckPolicy::Explicit, ..Default::default() };
        let consumer = stream.create_consumer(config).await?;
        let mut messages = consumer.messages().await?;
        let jetstream = context(&servers.nats).await?;
        let moments = self.moments();
        let noting = moments.clone();
        let receiving = tokio::spawn(async move {
            for _ in 0..noting.arrived.len() {
                let message = messages.next().await.context("the subscription has ended")??;
                noting.note(&noting.arrived, number_of(&message.payload)?);
                message.ack().await.map_err(anyhow::Error::from_boxed)?;
            }
            anyhow::Ok(())
        });
        let mut due = pace(moments.clone());
        let mut acks = JoinSet::new();
        while let Some(number) = due.recv().await {
            let (headers, payload) = raw::message(&event(number)?);
            let ack = jetstream.publish_with_headers(SUBJECT, headers, payload).await?;
            acks.spawn(ack.into_future());
            while let Some(acknowledged) = acks.try_join_next() {
                acknowledged??;
            }
        }
        while let Some(acknowledged) = acks.join_next().await {
            acknowledged??;
        }
        tokio::time::timeout(PATIENCE, receiving).await.context("not all arrived")???;
        Ok(vec![self.since_due(&moments, &moments.arrived)])
    }

    async fn whole(&self, servers: &Servers) -> Result<Vec<Vec<f64>>> {
        new_stream(&servers.nats).await?;
        let outbox = Outbox::create(&servers.postgres).await?;
        migrate(outbox.pool()).await?;
        sqlx::raw_sql(EFFECTS).execute(outbox.pool()).await?;
        sqlx::raw_sql("create table orders (id bigint primary key)").execute(outbox.pool()).await?;
        outbox.settle().await?;
        let relay = Shipping::start_leading(config(&outbox, &servers.nats)).await?;
        let shutdown = CancellationToken::new();
        let moments = self.moments();
        let consuming = self.consume(servers, &outbox, moments.clone(), shutdown.clone()).await?;
        let due = Arc::new(Mutex::new(pace(moments.clone())));
        let mut writers = JoinSet::new();
        for _ in 0..self.writers {
            let connection = PgConnection::connect(outbox.url()).await?;
            writers.spawn(write(connection, due.clone(), moments.clone()));
        }
        while let Some(writer) = writers.join_next().await {
            writer??;
        }
        let begin = Instant::now();
        while !moments.all_arrived() {
            ensure!(begin.elapsed() < PATIENCE, "not all events were handled");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        shutdown.cancel();
        consuming.await??;
        relay.stop().await?;
        outbox.remove().await?;
        let committed = |event: u64| moments.committed[event as usize].load(Ordering::Relaxed);
        Ok(vec![
            self.since_due(&moments, &moments.arrived),
            moments.latencies(self.rate * self.warm_up, committed, &moments.arrived),
            self.since_due(&moments, &moments.committed),
        ])
    }

    /// Starts a consumer that records when a handler's transaction is committed.
    async fn consume(
        &self,
        servers: &Servers,
        outbox: &Outbox,
        moments: Arc<Moments>,
        shutdown: CancellationToken,
    ) -> Result<tokio::task::JoinHandle<Result<(), pillarbox::ConsumerError>>> {
        let config = ConsumerConfig::new(STREAM, "latency");
        let pool = outbox.pool().clone();
        let consumer = Consumer::with_config(servers.nats.connect().await?, pool, config)?;
        let inbox = consumer.layer().layer(Router::new().on(record));
        let service = tower::service_fn(move |delivery: Delivery| {
            let (inbox, moments) = (inbox.clone(), moments.clone());
            async move {
                let number = number_of(delivery.event.payload());
                let outcome = inbox.oneshot(delivery).await?;
                if let Ok(number) = number {
                    moments.note(&moments.arrived, number);
                }
                Ok::<_, pillarbox::inbox::InboxError>(outcome)
            }
        });
        Ok(tokio::spawn(consumer.run_service(service, shutdown)))
    }
}

/// If there is no progress for this long, something is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gives out the numbers of events when they are due. A thread keeps the time, because the runtime's own clock ticks in
/// milliseconds.
fn pace(moments: Arc<Moments>) -> mpsc::UnboundedReceiver<u64> {
    let (due, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for number in 0..moments.arrived.len() as u64 {
            std::thread::sleep(moments.due(number).saturating_duration_since(Instant::now()));
            if due.send(number).is_err() {
                return;
            }
        }
    });
    receiver
}

/// One transaction for each event that is due.
async fn write(
    mut connection: PgConnection,
    due: Arc<Mutex<mpsc::UnboundedReceiver<u64>>>,
    moments: Arc<Moments>,
) -> Result<()> {
    loop {
        let Some(number) = due.lock().await.recv().await else { return Ok(()) };
        let mut tx = connection.begin().await?;
        sqlx::query("insert into orders (id) values ($1)")
            .bind(number as i64)
            .execute(&mut *tx)
            .await?;
        pillarbox::outbox::publish(&mut tx, event(number)?).await?;
        tx.commit().await?;
        moments.note(&moments.committed, number);
    }
}

/// An event whose payload begins with its number.
fn event(number: u64) -> Result<RawEvent> {
    let payload = format!("{number:0width$}", width = usize::try_from(PAYLOAD_BYTES)?);
    let key = (number % KEYS).to_string();
    Ok(RawEvent::builder(EVENT_TYPE, SUBJECT).key(key).payload(payload.into_bytes()).build()?)
}

fn number_of(payload: &[u8]) -> Result<u64> {
    Ok(std::str::from_utf8(payload)?.parse()?)
}
