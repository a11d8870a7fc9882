//! How soon scheduled events leave after they are due, how fast many leave, and whether pending ones slow shipping
//! down.
//!
//! - *due → in the outbox*: from an event's due time to the `created_at` of its row in the outbox, both by the
//!   database's clock, on an idle outbox and beside events that are published at a constant rate. The time runs to the
//!   insert; the commit comes about a millisecond later.
//! - *due → in the stream*: to the time at which the broker stored the event. Database and broker share a clock.
//! - *release*: a backlog of events that are all due, from the relay's start until none of them is left in the table.
//! - *shipping*: draining an outbox, beside pending events that are due in a year, and without any.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::stream::Stream;
use clap::Args;
use futures::StreamExt;
use pillarbox::event::RawEvent;
use pillarbox_relay::SinkChoice;
use pillarbox_testkit::Servers;
use serde::Serialize;
use sqlx::{Connection, PgConnection, Row};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::backlog::{EVENT_TYPE, Outbox, PAYLOAD_BYTES, SUBJECT};
use crate::plot::{Curve, Plot};
use crate::program::{Findings, Subject};
use crate::rounds::interleaved;
use crate::shipping::{Shipping, config, drain, new_stream, wait_for};
use crate::statistics::{percentile, sorted};
use crate::table::Table;
use crate::unit::{Goal, Unit, count};

const KEYS: Option<u64> = Some(1000);
const LATENESS: [&str; 4] = [
    "due → in the outbox, idle",
    "due → in the stream, idle",
    "due → in the outbox, busy",
    "due → in the stream, busy",
];
const PENDING: [&str; 2] = ["none pending", "many pending"];
/// If there is no progress for this long, something is stuck.
const PATIENCE: Duration = Duration::from_secs(120);
/// The type of the scheduled events, which tells them from the others.
const SCHEDULED: &str = "payment.overdue";

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Scheduled {
    /// Rounds that count.
    #[arg(default_value_t = 3)]
    rounds: usize,
    /// Seconds of each round in which events become due.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Scheduled events that become due per second.
    #[arg(long, default_value_t = 50)]
    due_rate: u64,
    /// Events published per second beside them, on the busy outbox.
    #[arg(long, default_value_t = 1_000)]
    rate: u64,
    /// Events that are due at once.
    #[arg(long, default_value_t = 200_000)]
    backlog: u64,
    /// Events that are drained beside pending ones.
    #[arg(long, default_value_t = 200_000)]
    events: u64,
    /// Pending events.
    #[arg(long, default_value_t = 1_000_000)]
    pending: u64,
}

impl Subject for Scheduled {
    const NAME: &'static str = "scheduled";

    fn quick() -> Self {
        Self {
            rounds: 0,
            seconds: 1,
            due_rate: 20,
            rate: 100,
            backlog: 2_000,
            events: 1_000,
            pending: 5_000,
        }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        let (mut tables, plot) = self.lateness(servers).await?;
        tables.push(self.release(servers).await?);
        tables.push(self.shipping(servers).await?);
        Ok(Findings { tables, plot })
    }
}

/// Latencies of a round in milliseconds, in ascending order: to the outbox, and to the stream.
type Latencies = [Vec<f64>; 2];

impl Scheduled {
    async fn lateness(&self, servers: &Servers) -> Result<(Vec<Table>, Plot)> {
        println!(
            "\n{} events due per second for {} s; busy: {} others per second; p50 and p99 in ms",
            self.due_rate,
            self.seconds,
            count(self.rate)
        );
        let show = |round: &str, measured: &[Latencies]| {
            print!("{round:>8}");
            for (name, latencies) in LATENESS.iter().zip(measured.concat()) {
                let (p50, p99) = (percentile(&latencies, 0.5), percentile(&latencies, 0.99));
                print!("  {name}: {p50:.2}, {p99:.2}");
            }
            println!();
        };
        let measure = async |way, _| self.round(servers, way == 1).await;
        let ways: Vec<Vec<Latencies>> = interleaved(2, self.rounds, measure, show).await?;
        let columns: Vec<Vec<Vec<f64>>> = (ways.iter())
            .flat_map(|rounds| {
                (0..2).map(move |c| rounds.iter().map(|round| round[c].clone()).collect())
            })
            .collect();
        let mut tables = Vec::new();
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            let figures = columns.iter().map(|rounds| {
                rounds.iter().map(|latencies| percentile(latencies, share)).collect()
            });
            let title = format!("Lateness of scheduled events, {name}");
            let mut table =
                Table::of(&title, Unit::Milliseconds, LATENESS.into_iter().zip(figures));
            table.print();
            if name == "p99" {
                for column in LATENESS {
                    table.hold(column, Goal::AtMost(100.0))?;
                }
            }
            tables.push(table);
        }
        let curves = LATENESS.into_iter().zip(&columns).map(|(name, rounds)| Curve {
            name: name.to_owned(),
            sorted: sorted(&rounds.concat()),
        });
        Ok((tables, Plot::Percentiles(curves.collect())))
    }

    async fn round(&self, servers: &Servers, busy: bool) -> Result<Latencies> {
        let mut stream = new_stream(&servers.nats).await?;
        let outbox = Outbox::create(&servers.postgres).await?;
        let relay = Shipping::start_leading(config(&outbox, &servers.nats)).await?;
        let stop = CancellationToken::new();
        let mut writers = JoinSet::new();
        if busy {
            // A writer does one transaction after the other, and cannot do more than some hundred per second.
            let many = (self.rate / 100).clamp(1, 10);
            for _ in 0..many {
                let connection = PgConnection::connect(outbox.url()).await?;
                let every = Duration::from_secs(1).mul_f64(many as f64 / self.rate as f64);
                writers.spawn(write(connection, every, stop.clone()));
            }
        }
        let events = self.seconds * self.due_rate;
        // The payload is the due time in microseconds. The times are spread within each interval.
        sqlx::query(
            "with due as ( \
                 select clock_timestamp() + interval '1 s' + (i + random()) * $2::float8 * interval '1 s' as at, i \
                 from generate_series(1, $1) i \
             ) \
             insert into pillarbox.outbox_scheduled (due_at, event_type, topic, key, payload) \
             select at, $3, $4, i::text, convert_to((extract(epoch from at) * 1000000)::bigint::text, 'utf8') from due",
        )
        .bind(i64::try_from(events)?)
        .bind(1.0 / self.due_rate as f64)
        .bind(SCHEDULED)
        .bind(SUBJECT)
        .execute(outbox.pool())
        .await?;
        tokio::time::sleep(Duration::from_secs(self.seconds + 1)).await;
        let released = "select count(*) from pillarbox.outbox where event_type = $1";
        until(async || {
            let found: i64 =
                sqlx::query_scalar(released).bind(SCHEDULED).fetch_one(outbox.pool()).await?;
            Ok(u64::try_from(found)? == events)
        })
        .await?;
        stop.cancel();
        while let Some(writer) = writers.join_next().await {
            writer??;
        }
        let all: i64 = sqlx::query_scalar("select count(*) from pillarbox.outbox")
            .fetch_one(outbox.pool())
            .await?;
        wait_for(&mut stream, u64::try_from(all)?).await?;
        relay.stop().await?;
        let in_outbox = sqlx::query(
            "select (extract(epoch from created_at) * 1000000)::bigint - convert_from(payload, 'utf8')::bigint \
             from pillarbox.outbox where event_type = $1",
        )
        .bind(SCHEDULED)
        .fetch_all(outbox.pool())
        .await?;
        let in_outbox = in_outbox
            .iter()
            .map(|row| Ok(row.try_get::<i64, _>(0)? as f64 / 1_000.0))
            .collect::<Result<Vec<f64>>>()?;
        let in_stream = stored(&stream, u64::try_from(all)?).await?;
        ensure!(in_stream.len() as u64 == events, "{} of {events} are stored", in_stream.len());
        outbox.remove().await?;
        Ok([sorted(&in_outbox), sorted(&in_stream)])
    }

    async fn release(&self, servers: &Servers) -> Result<Table> {
        let title = format!("Releasing {} events that are due", count(self.backlog));
        let measure = async |_, _| {
            let mut stream = new_stream(&servers.nats).await?;
            let outbox = Outbox::create(&servers.postgres).await?;
            schedule(&outbox, self.backlog, "-1 hour").await?;
            let begin = Instant::now();
            let relay = Shipping::start_leading(config(&outbox, &servers.nats)).await?;
            let left = "select exists (select from pillarbox.outbox_scheduled)";
            until(async || {
                Ok(!sqlx::query_scalar::<_, bool>(left).fetch_one(outbox.pool()).await?)
            })
            .await?;
            let rate = self.backlog as f64 / begin.elapsed().as_secs_f64();
            wait_for(&mut stream, self.backlog).await?;
            relay.stop().await?;
            outbox.remove().await?;
            Ok(rate)
        };
        let way = "released";
        let mut table =
            Table::measure(&title, Unit::PerSecond, &[way], self.rounds, measure).await?;
        table.hold(way, Goal::AtLeast(20_000.0))?;
        Ok(table)
    }

    async fn shipping(&self, servers: &Servers) -> Result<Table> {
        // All use one stream, because a relay would notice if it were created again.
        let mut stream = new_stream(&servers.nats).await?;
        let without = Outbox::create(&servers.postgres).await?;
        let with = Outbox::create(&servers.postgres).await?;
        schedule(&with, self.pending, "1 year").await?;
        let title = format!(
            "Draining {} events beside {} pending ones",
            count(self.events),
            count(self.pending)
        );
        let measure = async |way, _| {
            let outbox = if way == 0 { &without } else { &with };
            sqlx::raw_sql("truncate pillarbox.outbox").execute(outbox.pool()).await?;
            outbox.fill(self.events, KEYS).await?;
            outbox.settle().await?;
            drain(&servers.nats, outbox, &mut stream, self.events, SinkChoice::Auto).await
        };
        let mut table =
            Table::measure(&title, Unit::PerSecond, &PENDING, self.rounds, measure).await?;
        table.ratio(PENDING[1], PENDING[0], Some(Goal::AtLeast(0.95)))?;
        without.remove().await?;
        with.remove().await?;
        Ok(table)
    }
}

/// Schedules events that are due one after the other, from this time on.
async fn schedule(outbox: &Outbox, events: u64, from: &str) -> Result<()> {
    sqlx::query(
        "insert into pillarbox.outbox_scheduled (due_at, event_type, topic, key, payload) \
         select clock_timestamp() + $2::text::interval + i * interval '1 ms', $3, $4, (i % 1000)::text, \
                convert_to(repeat('x', $5), 'utf8') \
         from generate_series(1, $1) i",
    )
    .bind(i64::try_from(events)?)
    .bind(from)
    .bind(EVENT_TYPE)
    .bind(SUBJECT)
    .bind(PAYLOAD_BYTES)
    .execute(outbox.pool())
    .await?;
    sqlx::raw_sql("vacuum analyze pillarbox.outbox_scheduled").execute(outbox.pool()).await?;
    outbox.settle().await
}

/// Publishes events at a constant rate.
async fn write(
    mut connection: PgConnection,
    every: Duration,
    stop: CancellationToken,
) -> Result<()> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let payload = vec![b'x'; usize::try_from(PAYLOAD_BYTES)?];
    while !stop.is_cancelled() {
        ticks.tick().await;
        let mut tx = connection.begin().await?;
        let event = RawEvent::builder(EVENT_TYPE, SUBJECT).payload(payload.clone()).build()?;
        pillarbox::outbox::publish(&mut tx, event).await?;
        tx.commit().await?;
    }
    Ok(())
}

/// How long after they were due the scheduled events were stored, in milliseconds, among the `messages` of a stream.
async fn stored(stream: &Stream, messages: u64) -> Result<Vec<f64>> {
    let mut reading = stream.create_consumer(OrderedConfig::default()).await?.messages().await?;
    let mut late = Vec::new();
    for _ in 0..messages {
        let message =
            timeout(PATIENCE, reading.next()).await?.context("the stream has ended")??;
        let headers = message.headers.as_ref();
        let event_type = headers.and_then(|headers| headers.get("ce-type"));
        if event_type.is_some_and(|found| found.as_str() == SCHEDULED) {
            let due: i128 = std::str::from_utf8(&message.payload)?.parse()?;
            let stored = message.info().map_err(anyhow::Error::from_boxed)?.published;
            late.push((stored.unix_timestamp_nanos() - due * 1_000) as f64 / 1e6);
        }
    }
    Ok(late)
}

async fn until(done: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !done().await? {
        ensure!(begin.elapsed() < PATIENCE, "not all events were released");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
