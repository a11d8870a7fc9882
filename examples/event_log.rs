//! Event log: events are kept for ever, and a service that is written later reads them from the first one on.
//!
//! ```text
//! cargo run --example event_log -- --events 600
//!
//!  outbox ─► relay ─► stream LEDGER ──┬─► balances     (there from the start)
//!                     (kept for ever) └─► statistics   (joins late)
//! ```
//!
//! By default, a new consumer begins at the start of the stream. The exit code is 1 if the two services disagree.

mod stage;

use std::process::ExitCode;

use clap::Parser;
use pillarbox::consumer::streams::StreamSpec;
use pillarbox::event::Event;
use pillarbox::{ConsumerConfig, HandlerError, Router, Tx};
use serde::{Deserialize, Serialize};
use stage::{Arguments, Stage, Verdict, number, reaches};

const ACCOUNTS: i64 = 20;

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "money.deposited", topic = "ledger.deposits", key = account)]
struct Deposited {
    account: i64,
    cents: i64,
}

async fn balance(tx: &mut Tx, deposit: Deposited) -> Result<(), HandlerError> {
    sqlx::query(
        "insert into balances (account, cents) values ($1, $2) \
         on conflict (account) do update set cents = balances.cents + excluded.cents",
    )
    .bind(deposit.account)
    .bind(deposit.cents)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn count(tx: &mut Tx, deposit: Deposited) -> Result<(), HandlerError> {
    sqlx::query("insert into deposits (cents) values ($1)")
        .bind(deposit.cents)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn publish(stage: &Stage, numbers: std::ops::Range<i64>) -> anyhow::Result<()> {
    let mut tx = stage.producer().begin().await?;
    let deposits: Vec<_> =
        numbers.map(|number| Deposited { account: number % ACCOUNTS, cents: number }).collect();
    pillarbox::outbox::publish_all(&mut tx, &deposits).await?;
    Ok(tx.commit().await?)
}

fn config(name: &str) -> ConsumerConfig {
    ConsumerConfig::new("LEDGER", name)
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { events } = Arguments::parse();
    let stage = Stage::open(StreamSpec::event_log("LEDGER", ["ledger.>"])).await?;
    let balances =
        stage.database("create table balances (account bigint primary key, cents bigint)").await?;
    let first = stage.start(&balances, config("balances"), Router::new().on(balance)).await?;
    let half = events / 2;
    publish(&stage, 0..half).await?;
    let handled = "select count(*) from pillarbox.inbox";
    reaches(&balances, handled, half).await?;

    // A year later, somebody wants to know how large deposits are.
    let statistics = stage.database("create table deposits (cents bigint)").await?;
    let late = stage.start(&statistics, config("statistics"), Router::new().on(count)).await?;
    reaches(&statistics, handled, half).await?;
    publish(&stage, half..events).await?;
    for database in [&balances, &statistics] {
        reaches(database, handled, events).await?;
    }
    first.stop().await?;
    late.stop().await?;

    let sum = "select coalesce(sum(cents), 0)::bigint from";
    let balance = number(&balances, &format!("{sum} balances")).await?;
    let deposits = number(&statistics, &format!("{sum} deposits")).await?;
    let seen = number(&statistics, "select count(*) from deposits").await?;
    println!("\nservice       events       sum");
    println!("balances     {events:7} {balance:9}");
    println!("statistics   {seen:7} {deposits:9}\n");
    let kept = stage.jetstream().get_stream("LEDGER").await?.info().await?.state.messages;
    let mut verdict = Verdict::default();
    verdict.claim("the service that joined late has every event", seen, events);
    verdict.claim("both services have the sum of all deposits", (balance, deposits), {
        let right = events * (events - 1) / 2;
        (right, right)
    });
    verdict.claim("the log keeps every event", kept, events.unsigned_abs());
    stage.close().await?;
    Ok(verdict.end())
}
