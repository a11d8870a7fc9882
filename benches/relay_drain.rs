//! How fast a relay drains a backlog, as a ratio to publishing the same messages without a database.
//!
//! `cargo bench --bench relay_drain [-- EVENTS [ROUNDS]]`: 200,000 events of 256 bytes, 3 rounds by default.
//! Both ends of the ratio run in turn on the same servers, which have their default durability, after one
//! round that does not count. The raw publisher has its messages, headers included, ready in memory, and
//! keeps up to 4,096 acknowledgements outstanding.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use pillarbox::event::RawEvent;
use pillarbox_relay::{Relay, RelayConfig, SinkChoice};
use pillarbox_testkit::{Nats, Postgres, Servers};
use tokio_util::sync::CancellationToken;

const PAYLOAD_BYTES: usize = 256;
const KEYS: i64 = 1000;
const OUTSTANDING: usize = 4096;

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<i64>().ok());
    let (events, rounds) = (numbers.next().unwrap_or(200_000), numbers.next().unwrap_or(3));
    let servers = Servers {
        postgres: Postgres::options().durable().start().await.unwrap(),
        nats: Nats::start().await.unwrap(),
    };
    println!("{} and {}", servers.postgres.version(), servers.nats.version());
    println!("{events} events of {PAYLOAD_BYTES} bytes over {KEYS} keys; events per second\n");
    println!("{:>7} {:>12} {:>14} {:>14}", "round", "raw", "relay", "keyed window");
    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 0..=rounds {
        let measured = [
            raw(&servers, events).await,
            relay(&servers, events, SinkChoice::Auto).await,
            relay(&servers, events, SinkChoice::KeyedWindow).await,
        ];
        let name = if round == 0 { "warm-up".to_owned() } else { round.to_string() };
        println!("{name:>7} {:>12.0} {:>14.0} {:>14.0}", measured[0], measured[1], measured[2]);
        if round > 0 {
            for (rates, rate) in rates.iter_mut().zip(measured) {
                rates.push(rate);
            }
        }
    }
    let [raw, relay, keyed] = rates.map(median);
    println!("{:>7} {raw:>12.0} {relay:>14.0} {keyed:>14.0}", "median");
    println!("{:>7} {:>12.2} {:>14.2} {:>14.2}", "ratio", 1.0, relay / raw, keyed / raw);
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

async fn stream(servers: &Servers, name: &str) -> Context {
    let jetstream = jetstream::context::ContextBuilder::new()
        .max_ack_inflight(2 * OUTSTANDING)
        .build(servers.nats.connect().await.unwrap());
    let config = jetstream::stream::Config {
        name: name.to_owned(),
        subjects: vec![format!("{name}.>")],
        allow_batch_publish: true,
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
    jetstream
}

/// Plain pipelined publishing with acknowledgements: nothing can ship faster without batches.
async fn raw(servers: &Servers, events: i64) -> f64 {
    let jetstream = stream(servers, "raw").await;
    let messages: Vec<_> = (0..events)
        .map(|number| {
            let event = RawEvent::builder("order.placed", "raw.placed")
                .key((number % KEYS).to_string())
                .source("/pillarbox")
                .header("ce-time", "2026-01-02T03:04:05.678901Z")
                .payload(vec![b'x'; PAYLOAD_BYTES])
                .build()
                .unwrap();
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", event.id().as_str());
            for (name, value) in event.wire_headers() {
                headers.insert(name, value.as_ref());
            }
            (headers, event.payload().clone())
        })
        .collect();
    let start = Instant::now();
    let mut outstanding = FuturesOrdered::new();
    for (headers, payload) in messages {
        let sent = jetstream.publish_with_headers("raw.placed", headers, payload).await.unwrap();
        outstanding.push_back(sent.into_future());
        if outstanding.len() >= OUTSTANDING {
            outstanding.next().await.unwrap().unwrap();
        }
    }
    while let Some(acknowledged) = outstanding.next().await {
        acknowledged.unwrap();
    }
    let rate = events as f64 / start.elapsed().as_secs_f64();
    jetstream.delete_stream("raw").await.unwrap();
    rate
}

/// From the start of the relay, connecting and taking the lease included, to the last message in the stream.
async fn relay(servers: &Servers, events: i64, sink: SinkChoice) -> f64 {
    let jetstream = stream(servers, "shop").await;
    let database = servers
        .postgres
        .create_database(&format!("d{}", uuid::Uuid::new_v4().simple()))
        .await
        .unwrap();
    pillarbox::outbox::migrate(&database.pool).await.unwrap();
    sqlx::query(
        "insert into pillarbox.outbox (event_type, topic, key, payload) \
         select 'order.placed', 'shop.placed', (i % $2)::text, convert_to(repeat('x', $3), 'utf8') \
         from generate_series(1, $1) i",
    )
    .bind(events)
    .bind(KEYS)
    .bind(i32::try_from(PAYLOAD_BYTES).unwrap())
    .execute(&database.pool)
    .await
    .unwrap();
    for settle in ["vacuum analyze pillarbox.outbox", "checkpoint"] {
        sqlx::raw_sql(settle).execute(&database.pool).await.unwrap();
    }

    let shutdown = CancellationToken::new();
    let config = RelayConfig {
        database_url: database.url,
        nats_url: servers.nats.url(),
        sink,
        ..RelayConfig::default()
    };
    let start = Instant::now();
    let running = tokio::spawn(Relay::new(config).unwrap().run(shutdown.clone()));
    let mut stream = jetstream.get_stream("shop").await.unwrap();
    while i64::try_from(stream.info().await.unwrap().state.messages).unwrap() < events {
        assert!(start.elapsed() < Duration::from_secs(120), "the relay is stuck");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let rate = events as f64 / start.elapsed().as_secs_f64();
    shutdown.cancel();
    running.await.unwrap().unwrap();
    jetstream.delete_stream("shop").await.unwrap();
    rate
}
