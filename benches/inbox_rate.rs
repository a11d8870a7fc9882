//! What the inbox costs a consumer: its rate as a ratio to the same handler and acknowledgements without it.
//!
//! `cargo bench --bench inbox_rate [-- EVENTS [ROUNDS]]`: 2,000 events of 256 bytes, 15 rounds by default. The
//! ways run in turn on the same servers, which have their default durability, over the same stream, after one
//! round that does not count. The handler inserts one row; the batch handler as many as there are events, up to
//! 500. Without the inbox, each event has a transaction too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context};
use pillarbox::event::RawEvent;
use pillarbox::inbox::{
    BatchHandler, Consumer, ConsumerConfig, Delivery, HandlerError, InboxError, Outcome, Received,
    Router, Tx, handler_fn, migrate,
};
use pillarbox_testkit::{Nats, Postgres, Servers};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio_util::sync::CancellationToken;

const PAYLOAD_BYTES: usize = 256;
const KEYS: usize = 1000;
const CONCURRENCY: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Way {
    Without,
    Single,
    Batch,
}

const WAYS: [Way; 3] = [Way::Without, Way::Single, Way::Batch];

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let (events, rounds) = (numbers.next().unwrap_or(2_000), numbers.next().unwrap_or(15));
    let servers = Servers {
        postgres: Postgres::options().durable().start().await.unwrap(),
        nats: Nats::start().await.unwrap(),
    };
    println!("{} and {}", servers.postgres.version(), servers.nats.version());
    println!("{events} events of {PAYLOAD_BYTES} bytes over {KEYS} keys; events per second\n");
    let database = servers.postgres.create_database("bench").await.unwrap();
    migrate(&database.pool).await.unwrap();
    sqlx::raw_sql("create table effects (event_id text not null, bytes integer not null)")
        .execute(&database.pool)
        .await
        .unwrap();
    let jetstream = fill(&servers, events).await;
    println!("{:>7} {:>12} {:>12} {:>12}", "round", "without", "single", "batch");
    let mut rates: [Vec<f64>; WAYS.len()] = Default::default();
    for round in 0..=rounds {
        let mut measured = [0.0; WAYS.len()];
        for (way, rate) in WAYS.into_iter().zip(&mut measured) {
            let name = format!("{way:?}-{round}");
            *rate = consume(&servers, &database.url, &jetstream, way, name, events).await;
        }
        let name = if round == 0 { "warm-up".to_owned() } else { round.to_string() };
        print_row(&name, &measured, 0);
        if round > 0 {
            for (rates, rate) in rates.iter_mut().zip(measured) {
                rates.push(rate);
            }
        }
    }
    let medians = rates.map(median);
    print_row("median", &medians, 0);
    print_row("ratio", &medians.map(|rate| rate / medians[0]), 2);
}

fn print_row(name: &str, figures: &[f64], digits: usize) {
    print!("{name:>7}");
    for figure in figures {
        print!(" {figure:>12.digits$}");
    }
    println!();
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// A stream with all the events.
async fn fill(servers: &Servers, events: usize) -> Context {
    let jetstream = jetstream::new(servers.nats.connect().await.unwrap());
    let config = jetstream::stream::Config {
        name: "SHOP".into(),
        subjects: vec!["shop.>".into()],
        max_age: Duration::from_secs(86_400),
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
    for number in 0..events {
        let event = RawEvent::builder("order.placed", "shop.placed")
            .key((number % KEYS).to_string())
            .payload(vec![b'x'; PAYLOAD_BYTES])
            .build()
            .unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in event.wire_headers() {
            headers.insert(name, value.as_ref());
        }
        let sent = jetstream.publish_with_headers("shop.placed", headers, event.payload().clone());
        sent.await.unwrap().await.unwrap();
    }
    jetstream
}

/// Has a new consumer handle all the events, and returns its rate.
async fn consume(
    servers: &Servers,
    database_url: &str,
    jetstream: &Context,
    way: Way,
    name: String,
    events: usize,
) -> f64 {
    let pool = PgPoolOptions::new().max_connections(16).connect(database_url).await.unwrap();
    sqlx::raw_sql("truncate effects; checkpoint").execute(&pool).await.unwrap();
    let client = servers.nats.connect().await.unwrap();
    let config = ConsumerConfig {
        stream: "SHOP".into(),
        name: name.clone(),
        concurrency: CONCURRENCY,
        prefetch: 2_000,
        batch_size: 500,
        ..ConsumerConfig::default()
    };
    let consumer = Consumer::new(client, pool.clone(), config).unwrap();
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    let start = Instant::now();
    let handlers = pool.clone();
    let running = tokio::spawn(async move {
        match way {
            Way::Without => {
                let service = tower::service_fn(move |delivery: Delivery| {
                    without_inbox(handlers.clone(), delivery)
                });
                consumer.run_service(service, token).await
            }
            Way::Single => consumer.run(Router::new().on(handler_fn(record)), token).await,
            Way::Batch => consumer.run_batches(RecordAll, token).await,
        }
    });
    // All are acknowledged, which is what the broker counts.
    let stream = jetstream.get_stream("SHOP").await.unwrap();
    loop {
        assert!(start.elapsed() < Duration::from_secs(120), "the consumer is stuck");
        let info = stream.consumer_info(&name).await;
        if info.is_ok_and(|info| info.ack_floor.stream_sequence == events as u64) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let rate = events as f64 / start.elapsed().as_secs_f64();
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let effects: i64 =
        sqlx::query_scalar("select count(*) from effects").fetch_one(&pool).await.unwrap();
    assert_eq!(effects, events as i64);
    stream.delete_consumer(&name).await.unwrap();
    pool.close().await;
    rate
}

async fn record(tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
    sqlx::query("insert into effects (event_id, bytes) values ($1, $2)")
        .bind(event.id().as_str())
        .bind(event.payload().len() as i32)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

struct RecordAll;

impl BatchHandler<RawEvent> for RecordAll {
    async fn handle(&self, tx: &mut Tx, events: &[Received<RawEvent>]) -> Result<(), HandlerError> {
        let ids: Vec<_> = events.iter().map(|event| event.id().as_str()).collect();
        let bytes: Vec<_> = events.iter().map(|event| event.payload().len() as i32).collect();
        sqlx::query(
            "insert into effects (event_id, bytes) select * from unnest($1::text[], $2::int[])",
        )
        .bind(ids)
        .bind(bytes)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

async fn without_inbox(pool: PgPool, delivery: Delivery) -> Result<Outcome, InboxError> {
    let handled: Result<(), sqlx::Error> = async {
        let mut tx = pool.begin().await?;
        sqlx::query("insert into effects (event_id, bytes) values ($1, $2)")
            .bind(delivery.event.id().as_str())
            .bind(delivery.event.payload().len() as i32)
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }
    .await;
    handled
        .map(|()| Outcome::Handled)
        .map_err(|error| InboxError::Database { doing: "handle", source: error })
}
