//! What removing a million shipped rows costs the writers of an outbox: nothing that they would notice.
//!
//! `cargo bench --bench retention [-- ROWS [WRITERS]]`: 1,000,000 rows of 256 bytes and 4 writers by default. The
//! writers commit one event at a time, with a pause of 5 ms in between, while the relay ships; first with
//! nothing to remove, then while the rows are removed, then with nothing to remove again. Postgres has its default
//! durability. All the while it is asked whether a writer waits for a lock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::{Duration, Instant};

use async_nats::jetstream;
use pillarbox_relay::{Relay, RelayConfig};
use pillarbox_testkit::{Database, Nats, Postgres};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PAYLOAD_BYTES: i32 = 256;
const PAUSE: Duration = Duration::from_millis(5);
const QUIET: Duration = Duration::from_secs(15);
/// Longer than the rows are old: nothing is removed.
const LONG: u64 = 86_400;

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<i64>().ok());
    let (rows, writers) = (numbers.next().unwrap_or(1_000_000), numbers.next().unwrap_or(4));
    let postgres = Postgres::options().durable().start().await.unwrap();
    let nats = Nats::start().await.unwrap();
    println!("{} and {}", postgres.version(), nats.version());
    let database = postgres.create_database("shop").await.unwrap();
    pillarbox::outbox::migrate(&database.pool).await.unwrap();
    let jetstream = jetstream::new(nats.connect().await.unwrap());
    let stream = jetstream::stream::Config {
        name: "shop".into(),
        subjects: vec!["shop.>".into()],
        allow_batch_publish: true,
        ..Default::default()
    };
    jetstream.create_stream(stream).await.unwrap();
    fill(&database, rows).await;

    let shipping = start(&database, &nats, LONG);
    wait_until(&database, "select count(*) = 0 from pillarbox.outbox, pillarbox.relay where position > (cursor ->> 'high')::bigint").await;
    println!("{rows} rows of {PAYLOAD_BYTES} bytes shipped; {writers} writers\n");
    println!(
        "{:<18} {:>8} {:>9} {:>9} {:>9} {:>9} {:>14}",
        "transactions", "number", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "seen waiting"
    );
    let measured = measure(&database, writers, async || tokio::time::sleep(QUIET).await).await;
    measured.print("nothing to remove");
    shipping.stop().await;

    let removing = start(&database, &nats, 1);
    let begin = Instant::now();
    let measured = measure(&database, writers, async || {
        // By position: the writers' rows do not matter.
        let gone =
            format!("select not exists (select from pillarbox.outbox where position <= {rows})");
        wait_until(&database, &gone).await;
    })
    .await;
    let seconds = begin.elapsed().as_secs_f64();
    measured.print("while removing");
    removing.stop().await;

    let shipping = start(&database, &nats, LONG);
    let after = measure(&database, writers, async || tokio::time::sleep(QUIET).await).await;
    after.print("afterwards");
    shipping.stop().await;
    println!("\n{rows} rows removed in {seconds:.1} s: {:.0} rows/s", rows as f64 / seconds);
}

async fn fill(database: &Database, rows: i64) {
    sqlx::query(
        "insert into pillarbox.outbox (event_type, topic, key, payload, created_at) \
         select 'order.placed', 'shop.placed', (i % 1000)::text, convert_to(repeat('x', $2), 'utf8'), \
         clock_timestamp() - interval '2 hours' from generate_series(1, $1) as i",
    )
    .bind(rows)
    .bind(PAYLOAD_BYTES)
    .execute(&database.pool)
    .await
    .unwrap();
    for settle in ["vacuum analyze pillarbox.outbox", "checkpoint"] {
        sqlx::raw_sql(settle).execute(&database.pool).await.unwrap();
    }
}

struct Running {
    relay: tokio::task::JoinHandle<Result<(), pillarbox_relay::RelayError>>,
    shutdown: CancellationToken,
}

fn start(database: &Database, nats: &Nats, retention_s: u64) -> Running {
    let shutdown = CancellationToken::new();
    let config = RelayConfig {
        database_url: database.url.clone(),
        nats_url: nats.url(),
        retention_s,
        ..RelayConfig::default()
    };
    let relay = tokio::spawn(Relay::new(config).unwrap().run(shutdown.clone()));
    Running { relay, shutdown }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.relay.await.unwrap().unwrap();
    }
}

async fn wait_until(database: &Database, condition: &str) {
    let begin = Instant::now();
    loop {
        let sql = sqlx::AssertSqlSafe(condition.to_owned());
        if sqlx::query_scalar::<_, bool>(sql).fetch_one(&database.pool).await.unwrap() {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(600), "stuck: {condition}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

struct Measured {
    latencies: Vec<Duration>,
    waits: i64,
    looks: u64,
}

impl Measured {
    fn print(mut self, name: &str) {
        self.latencies.sort();
        let at = |share: f64| {
            let index = ((self.latencies.len() - 1) as f64 * share) as usize;
            self.latencies[index].as_secs_f64() * 1e3
        };
        println!(
            "{name:<18} {:>8} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>5} of {:>5}",
            self.latencies.len(),
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0),
            self.waits,
            self.looks,
        );
    }
}

/// Writers at work until `until` has ended.
async fn measure(database: &Database, writers: i64, until: impl AsyncFnOnce()) -> Measured {
    let end = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        tasks.spawn(write(database.url.clone(), writer, end.clone()));
    }
    let watch = tokio::spawn(watch(database.url.clone(), end.clone()));
    until().await;
    end.cancel();
    let latencies = tasks.join_all().await.concat();
    let (waits, looks) = watch.await.unwrap();
    Measured { latencies, waits, looks }
}

/// One event a transaction, from `begin` to the answer to `commit`.
async fn write(url: String, writer: i64, end: CancellationToken) -> Vec<Duration> {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("set application_name = 'writer'").execute(&mut connection).await.unwrap();
    let mut latencies = Vec::new();
    while !end.is_cancelled() {
        let begin = Instant::now();
        let mut transaction = connection.begin().await.unwrap();
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, key, payload) \
             values ('order.placed', 'shop.placed', $1, convert_to(repeat('x', $2), 'utf8'))",
        )
        .bind(writer.to_string())
        .bind(PAYLOAD_BYTES)
        .execute(&mut *transaction)
        .await
        .unwrap();
        transaction.commit().await.unwrap();
        latencies.push(begin.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    latencies
}

/// How often a writer was seen to wait for a lock of rows, tables or transactions, and how often it was looked.
async fn watch(url: String, end: CancellationToken) -> (i64, u64) {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let (mut waits, mut looks) = (0, 0);
    while !end.is_cancelled() {
        waits += sqlx::query_scalar::<_, i64>(
            "select count(*) from pg_stat_activity where application_name = 'writer' and wait_event_type = 'Lock'",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        looks += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (waits, looks)
}
