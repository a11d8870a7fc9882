//! Partitions: several processes of one consumer share the keys, and each key keeps its order.
//!
//! ```text
//! cargo run --release --example partitions -- --events 6000
//!
//!                                      orders.0.placed ─┐
//!  outbox ─► relay ─► stream ORDERS ── orders.1.placed ─┼─► 1, then 2, then 4 processes of `payments`;
//!           partitions = 8               …              │   one is dropped in the middle, as by a crash
//!                                      orders.7.placed ─┘
//! ```
//!
//! In this example the processes are consumers in one program, each with its own pool and broker connection. One, two
//! and four of them handle the same number of events, and the rate is shown. A handler waits for 5 ms, as if it called
//! another service, and a process runs four handlers at a time, so more processes handle more. The exit code is 1 if an
//! effect is missing or happened twice, or if the effects of a key are out of order.

mod stage;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use pillarbox::consumer::streams::StreamSpec;
use pillarbox::event::Event;
use pillarbox::{ConsumerConfig, Handler, HandlerError, Router, Tx};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use stage::{Arguments, Process, Stage, Verdict, number, reaches};

const PARTITIONS: u32 = 8;
const ACCOUNTS: i64 = 200;

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = account)]
struct OrderPlaced {
    account: i64,
    number: i64,
}

/// Charges in this process.
struct Charge(i32);

impl Handler<OrderPlaced> for Charge {
    async fn handle(&self, tx: &mut Tx, placed: OrderPlaced) -> Result<(), HandlerError> {
        tokio::time::sleep(Duration::from_millis(5)).await; // calls another service
        sqlx::query("insert into charges (account, number, process) values ($1, $2, $3)")
            .bind(placed.account)
            .bind(placed.number)
            .bind(self.0)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

const TABLE: &str = "create table charges (
    position bigint generated always as identity, account bigint, number bigint, process int
)";

const TURNED_AROUND: &str = "select count(*) from (
    select number, lag(number) over (partition by account order by position) as before from charges
) as charge where before > number";

async fn start(stage: &Stage, database: &PgPool, number: i32) -> anyhow::Result<Process> {
    let config = ConsumerConfig {
        partitions: PARTITIONS,
        concurrency: 4,
        // How long the partitions of a killed process wait before others take them.
        takeover: Duration::from_secs(1),
        ..ConsumerConfig::new("ORDERS", "payments")
    };
    let own = PgPoolOptions::new().max_connections(6);
    let own = own.connect_with((*database.connect_options()).clone()).await?;
    stage.start(&own, config, Router::new().on(Charge(number))).await
}

/// Waits until each process has its share of the partitions.
async fn shared(processes: &[Process]) -> anyhow::Result<()> {
    for process in processes {
        process
            .until("an even share", |status| {
                let held = status.partitions.as_ref().map_or(0, |shared| shared.held.len());
                held == PARTITIONS as usize / processes.len()
            })
            .await?;
    }
    Ok(())
}

async fn publish(stage: &Stage, numbers: std::ops::Range<i64>) -> anyhow::Result<()> {
    let mut tx = stage.producer().begin().await?;
    let orders: Vec<_> =
        numbers.map(|number| OrderPlaced { account: number % ACCOUNTS, number }).collect();
    pillarbox::outbox::publish_all(&mut tx, &orders).await?;
    Ok(tx.commit().await?)
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { events } = Arguments::parse();
    let stream = StreamSpec::fan_out("ORDERS", ["orders.>"]);
    let stage = Stage::with_partitions(stream, PARTITIONS).await?;
    let database = stage.database(TABLE).await?;
    let handled = "select count(*) from charges";

    println!("processes   events/s");
    let (mut processes, mut published) = (Vec::new(), 0);
    for wanted in [1, 2, 4] {
        while processes.len() < wanted {
            let number = i32::try_from(processes.len())? + 1;
            processes.push(start(&stage, &database, number).await?);
        }
        shared(&processes).await?;
        let began = Instant::now();
        publish(&stage, published..published + events).await?;
        published += events;
        reaches(&database, handled, published).await?;
        println!("{wanted:9} {:10.0}", events as f64 / began.elapsed().as_secs_f64());
    }

    publish(&stage, published..published + events).await?;
    published += events;
    reaches(&database, handled, published - events / 2).await?;
    let (began, before) = (Instant::now(), number(&database, handled).await?);
    processes.remove(0).kill().await;
    reaches(&database, handled, published).await?;
    let left = published - before;
    println!("after a kill, {left} events in {:.1} s", began.elapsed().as_secs_f64());
    for process in processes {
        process.stop().await?;
    }

    let mut verdict = Verdict::default();
    let charges = number(&database, handled).await?;
    verdict.claim("every order was charged once", charges, published);
    let orders = number(&database, "select count(distinct number) from charges").await?;
    verdict.claim("no order was left out", orders, published);
    let shares = number(&database, "select count(distinct process) from charges").await?;
    verdict.claim("all four processes had a share", shares, 4);
    let turned = number(&database, TURNED_AROUND).await?;
    verdict.claim("each account was charged in order", turned, 0);
    stage.close().await?;
    Ok(verdict.end())
}
