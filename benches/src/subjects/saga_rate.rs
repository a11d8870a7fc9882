//! What a saga's step costs, compared with a plain handler that writes the same rows; and whether open instances slow
//! the steps of others down.
//!
//! Each event is a step of one of 1,000 instances. The saga's step changes the state and publishes an event, so its
//! transaction has the inbox row, the instance, an entry of its history and the outbox row. The plain handler locks a
//! row of a table of its own, updates it, inserts an entry and publishes: what somebody would write without sagas.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::Context;
use clap::Args;
use pillarbox::event::RawEvent;
use pillarbox::{Consumer, ConsumerConfig, HandlerError, Saga, Step, Tx, inbox, outbox};
use pillarbox_testkit::Servers;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio_util::sync::CancellationToken;

use crate::backlog::{Outbox, SUBJECT};
use crate::plot::Plot;
use crate::program::{Findings, Subject};
use crate::raw;
use crate::shipping::{STREAM, acknowledged, context, new_stream};
use crate::table::Table;
use crate::unit::{Goal, Unit, count};

const KEYS: u64 = 1000;
const CONCURRENCY: usize = 8;
const WAYS: [&str; 3] = ["plain handler", "saga", "saga, many open"];

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct SagaRate {
    /// Events in each round.
    #[arg(default_value_t = 5_000)]
    events: u64,
    /// Rounds that count.
    #[arg(default_value_t = 9)]
    rounds: usize,
    /// Open instances that no event is for.
    #[arg(long, default_value_t = 100_000)]
    open: u64,
}

/// The plain handler's tables, with the columns and the index of the saga's.
const TABLES: &str = "
create table booking (
    id         text        primary key,
    state      jsonb       not null,
    step       text        not null,
    version    bigint      not null,
    started_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp()
);
create index booking_open on booking (step, started_at);
create table booking_history (
    id          text        not null references booking (id),
    seq         bigint      not null,
    at          timestamptz not null default clock_timestamp(),
    event_id    text        not null,
    event_type  text        not null,
    step_before text        not null,
    step_after  text        not null,
    published   jsonb       not null,
    primary key (id, seq)
)";

/// Empties everything, and makes instances that have begun: $1 for the events, and $2 others.
const BEGIN: [&str; 3] = [
    "truncate booking, booking_history, pillarbox.saga, pillarbox.saga_history, pillarbox.outbox",
    "insert into booking (id, state, step, version) select n::text, '{\"steps\": 0}', 'started', 1 \
     from generate_series(0, $1::bigint - 1) as n where $2::bigint >= 0",
    "insert into pillarbox.saga (saga, id, state, step, status, version) \
     select 'bench', name, '{\"steps\": 0}', 'started', 'running', 1 from ( \
         select n::text as name from generate_series(0, $1::bigint - 1) as n \
         union all select 'open-' || n from generate_series(1, $2::bigint) as n \
     ) as names",
];

impl Subject for SagaRate {
    const NAME: &'static str = "saga_rate";

    fn quick() -> Self {
        Self { events: 300, rounds: 0, open: 500 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        let database = Outbox::create(&servers.postgres).await?;
        inbox::migrate(database.pool()).await?;
        sqlx::raw_sql(TABLES).execute(database.pool()).await?;
        new_stream(&servers.nats).await?;
        let jetstream = context(&servers.nats).await?;
        for number in 0..self.events {
            let (headers, payload) = raw::message(&raw::event(number, KEYS)?);
            jetstream.publish_with_headers(SUBJECT, headers, payload).await?.await?;
        }
        let title =
            format!("{} steps; beside {} open instances", count(self.events), count(self.open));
        let mut table =
            Table::measure(&title, Unit::PerSecond, &WAYS, self.rounds, async |way, round| {
                let name = format!("way-{way}-{round}");
                self.consume(servers, database.url(), &jetstream, way, name).await
            })
            .await?;
        table.ratio("saga", "plain handler", Some(Goal::AtLeast(0.7)))?;
        table.ratio("saga, many open", "saga", Some(Goal::AtLeast(0.95)))?;
        database.remove().await?;
        Ok(Findings { tables: vec![table], plot: Plot::Bars })
    }
}

impl SagaRate {
    /// Lets a new consumer handle all events, and returns its rate.
    async fn consume(
        &self,
        servers: &Servers,
        database_url: &str,
        jetstream: &Context,
        way: usize,
        name: String,
    ) -> Result<f64> {
        let pool = PgPoolOptions::new().max_connections(16).connect(database_url).await?;
        self.begin(&pool, way).await?;
        let config = ConsumerConfig {
            concurrency: CONCURRENCY,
            prefetch: 2_000,
            ..ConsumerConfig::new(STREAM, name.clone())
        };
        let consumer = Consumer::with_config(servers.nats.connect().await?, pool.clone(), config)?;
        let shutdown = CancellationToken::new();
        let begin = Instant::now();
        let running = tokio::spawn({
            let shutdown = shutdown.clone();
            async move {
                match way {
                    0 => consumer.on(plain).run(shutdown).await,
                    _ => consumer.with(Saga::new("bench").on(Booking::step)).run(shutdown).await,
                }
            }
        });
        let stream = jetstream.get_stream(STREAM).await?;
        let handled = acknowledged(&stream, &name, self.events).await?;
        let rate = handled as f64 / begin.elapsed().as_secs_f64();
        shutdown.cancel();
        running.await?.context("the consumer")?;
        self.check(&pool, way).await?;
        stream.delete_consumer(&name).await?;
        pool.close().await;
        Ok(rate)
    }

    async fn begin(&self, pool: &PgPool, way: usize) -> Result<()> {
        let [empty, bookings, instances] = BEGIN;
        let open = if way == 2 { self.open } else { 0 };
        sqlx::raw_sql(empty).execute(pool).await?;
        for statement in [bookings, instances] {
            let statement = sqlx::query(statement).bind(i64::try_from(KEYS)?);
            statement.bind(i64::try_from(open)?).execute(pool).await?;
        }
        sqlx::raw_sql("analyze booking, pillarbox.saga; checkpoint").execute(pool).await?;
        Ok(())
    }

    /// Every step was made, has an entry, and has published.
    async fn check(&self, pool: &PgPool, way: usize) -> Result<()> {
        let made = match way {
            0 => {
                "select (select sum((state ->> 'steps')::bigint) from booking)::bigint, \
                 (select count(*) from booking_history)"
            }
            _ => {
                "select (select sum((state ->> 'steps')::bigint) from pillarbox.saga)::bigint, \
                 (select count(*) from pillarbox.saga_history)"
            }
        };
        let (steps, entries): (i64, i64) = sqlx::query_as(made).fetch_one(pool).await?;
        let published: i64 =
            sqlx::query_scalar("select count(*) from pillarbox.outbox").fetch_one(pool).await?;
        let events = i64::try_from(self.events)?;
        ensure!(
            [steps, entries, published] == [events; 3],
            "{steps} steps, {entries} entries and {published} events published, of {events}"
        );
        Ok(())
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Booking {
    steps: u64,
}

impl Booking {
    async fn step(&mut self, step: &mut Step<'_>, event: RawEvent) -> Result<(), HandlerError> {
        self.steps += 1;
        step.enter("booked");
        step.publish(answer(&event)?)?;
        Ok(())
    }
}

fn answer(event: &RawEvent) -> Result<RawEvent, HandlerError> {
    let answer = RawEvent::builder("booking.stepped", "bookings.stepped");
    Ok(answer.key(event.key().unwrap_or_default()).payload(event.payload().clone()).build()?)
}

async fn plain(tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
    let id = event.key().unwrap_or_default();
    let (state, step, version): (String, String, i64) =
        sqlx::query_as("select state::text, step, version from booking where id = $1 for update")
            .bind(id)
            .fetch_one(&mut **tx)
            .await?;
    let mut booking: Booking = serde_json::from_str(&state).map_err(HandlerError::permanent)?;
    booking.steps += 1;
    let state = serde_json::to_string(&booking).map_err(HandlerError::permanent)?;
    let answer = answer(&event)?;
    let published =
        format!("[{{\"id\": \"{}\", \"type\": \"{}\"}}]", answer.id(), answer.event_type());
    sqlx::query(
        "update booking set state = $2::text::jsonb, step = 'booked', version = $3, updated_at = clock_timestamp() \
         where id = $1",
    )
    .bind(id)
    .bind(state)
    .bind(version + 1)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "insert into booking_history (id, seq, event_id, event_type, step_before, step_after, published) \
         values ($1, $2, $3, $4, $5, 'booked', $6::text::jsonb)",
    )
    .bind(id)
    .bind(version + 1)
    .bind(event.id().as_str())
    .bind(event.event_type())
    .bind(step)
    .bind(published)
    .execute(&mut **tx)
    .await?;
    outbox::publish(tx, answer).await?;
    Ok(())
}
