//! Fan-out: every service gets every event, and one that was down catches up.
//!
//! ```text
//! cargo run --example fan_out -- --events 600
//!
//!                                     ┌─► billing     (database of its own)
//!  outbox ─► relay ─► stream ORDERS ──┼─► warehouse   (database of its own)
//!                     (kept 7 days)   └─► mail        (database of its own; down for a while)
//! ```
//!
//! Each service is a consumer with its own name. The exit code is 1 unless each of them has every event once, in order
//! per customer.

mod stage;

use std::process::ExitCode;

use clap::Parser;
use pillarbox::consumer::streams::StreamSpec;
use pillarbox::event::Event;
use pillarbox::{ConsumerConfig, HandlerError, Router, Tx};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use stage::{Arguments, Process, Stage, Verdict, number, reaches};

const TABLES: &str =
    "create table seen (place bigint generated always as identity, customer bigint, number bigint)";
const CUSTOMERS: i64 = 10;

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = customer)]
struct OrderPlaced {
    number: i64,
    customer: i64,
}

async fn note(tx: &mut Tx, order: OrderPlaced) -> Result<(), HandlerError> {
    sqlx::query("insert into seen (customer, number) values ($1, $2)")
        .bind(order.customer)
        .bind(order.number)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn publish(stage: &Stage, numbers: std::ops::Range<i64>) -> anyhow::Result<()> {
    let mut tx = stage.producer().begin().await?;
    let orders: Vec<_> =
        numbers.map(|number| OrderPlaced { number, customer: number % CUSTOMERS }).collect();
    pillarbox::outbox::publish_all(&mut tx, &orders).await?;
    Ok(tx.commit().await?)
}

async fn start(stage: &Stage, name: &str, database: &PgPool) -> anyhow::Result<Process> {
    let config = ConsumerConfig::new("ORDERS", name);
    stage.start(database, config, Router::new().on(note)).await
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { events } = Arguments::parse();
    let stage = Stage::open(StreamSpec::fan_out("ORDERS", ["orders.>"])).await?;
    let mut services = Vec::new();
    for name in ["billing", "warehouse", "mail"] {
        let database = stage.database(TABLES).await?;
        services.push((name, start(&stage, name, &database).await?, database));
    }
    let count = "select count(*) from seen";

    let third = events / 3;
    publish(&stage, 0..third).await?;
    for (_, _, database) in &services {
        reaches(database, count, third).await?;
    }
    let Some((mail, process, mail_database)) = services.pop() else { unreachable!() };
    process.stop().await?;
    publish(&stage, third..events).await?;
    for (_, _, database) in &services {
        reaches(database, count, events).await?;
    }
    let missed = events - number(&mail_database, count).await?;
    let process = start(&stage, mail, &mail_database).await?;
    reaches(&mail_database, count, events).await?;
    services.push((mail, process, mail_database));

    println!("\nservice     events   missed while down");
    let mut verdict = Verdict::default();
    let mut claims = Vec::new();
    for (name, process, database) in services {
        let seen = number(&database, count).await?;
        let inversions = "select count(*) from (select number, lag(number) over (partition by customer order by place) \
                          as before from seen) as seen where number <= before";
        let inversions = number(&database, inversions).await?;
        println!("{name:10} {seen:7} {:12}", if name == mail { missed } else { 0 });
        claims.push((name, seen, inversions));
        process.stop().await?;
    }
    println!();
    for (name, seen, inversions) in claims {
        verdict.claim(&format!("{name} has every event once"), seen, events);
        verdict.claim(&format!("{name} has the events of each customer in order"), inversions, 0);
    }
    verdict.claim("mail was down for two thirds", missed, events - third);
    stage.close().await?;
    Ok(verdict.end())
}
