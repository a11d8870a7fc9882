//! Poison: an event that cannot be read becomes a dead letter, the handler is fixed, and the event is retried.
//!
//! ```text
//! cargo run --example poison -- --events 600
//!
//!  outbox ─► relay ─► stream ORDERS ─► billing ──┬─► bills
//!                                                └─► dead letters ── handler fixed, retry ──► bills
//! ```
//!
//! A producer that was upgraded too early writes a number as text in every sixth event. The unreadable events are set
//! aside whole at the first attempt, because a retry would change nothing, and the other events continue. The exit code
//! is 1 if an order is billed twice or never, or if something is left over.

mod stage;

use std::process::ExitCode;

use clap::Parser;
use pillarbox::consumer::streams::StreamSpec;
use pillarbox::event::RawEvent;
use pillarbox::inbox::InboxLayer;
use pillarbox::{ConsumerConfig, HandlerError, Router, Tx};
use serde::Deserialize;
use stage::{Arguments, Stage, Verdict, number};
use tower::Layer;

/// One event in this many is poison.
const POISON: i64 = 6;
const CONSUMER: &str = "billing";

#[derive(Deserialize)]
struct Strict {
    order: i64,
    cents: i64,
}

/// The fixed type, which reads an amount as a number or as text.
#[derive(Deserialize)]
struct Lenient {
    order: i64,
    cents: Amount,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(i64),
    Text(String),
}

async fn bill(tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
    let Strict { order, cents } =
        serde_json::from_slice(event.payload()).map_err(HandlerError::permanent)?;
    write(tx, order, cents).await
}

async fn bill_fixed(tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
    let Lenient { order, cents } =
        serde_json::from_slice(event.payload()).map_err(HandlerError::permanent)?;
    let cents = match cents {
        Amount::Number(cents) => cents,
        Amount::Text(text) => text.parse().map_err(HandlerError::permanent)?,
    };
    write(tx, order, cents).await
}

async fn write(tx: &mut Tx, order: i64, cents: i64) -> Result<(), HandlerError> {
    sqlx::query("insert into bills (order_id, cents) values ($1, $2)")
        .bind(order)
        .bind(cents)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

fn placed(order: i64) -> anyhow::Result<RawEvent> {
    let payload = match order % POISON {
        0 => serde_json::json!({ "order": order, "cents": (100 * order).to_string() }),
        _ => serde_json::json!({ "order": order, "cents": 100 * order }),
    };
    let event = RawEvent::builder("order.placed", "orders.placed").key(order.to_string());
    Ok(event.payload(serde_json::to_vec(&payload)?).build()?)
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { events } = Arguments::parse();
    let stage = Stage::open(StreamSpec::fan_out("ORDERS", ["orders.>"])).await?;
    let database = stage.database("create table bills (order_id bigint, cents bigint)").await?;
    let config = ConsumerConfig::new("ORDERS", CONSUMER);
    let billing = stage.start(&database, config, Router::new().on(bill)).await?;
    let mut tx = stage.producer().begin().await?;
    let orders = (1..=events).map(placed).collect::<anyhow::Result<Vec<_>>>()?;
    pillarbox::outbox::publish_all(&mut tx, orders).await?;
    tx.commit().await?;
    let done = billing
        .until("every event to be handled or set aside", |status| {
            status.totals.handled + status.totals.dead_letters == events.unsigned_abs()
        })
        .await?;
    billing.stop().await?;

    let inbox = InboxLayer::new(database.clone(), CONSUMER)?;
    let letters = inbox.dead_letters();
    let dead = letters.list(events).await?;
    let billed = number(&database, "select count(*) from bills").await?;
    println!("\n                 handled   dead letters   bills");
    println!("as deployed      {:7} {:14} {billed:7}", done.totals.handled, dead.len());
    let attempts = dead.iter().map(|letter| letter.attempts).max();
    let reasons = dead.iter().all(|letter| letter.reason == "permanent");
    let example = dead.first().map(|letter| letter.error.clone()).unwrap_or_default();

    // The fixed handler uses the inbox of the same consumer. What it writes commits together with the resolution of the
    // letter.
    let fixed = Router::new().on(bill_fixed);
    let retried = letters.retry_with(inbox.layer(fixed)).await?.handled;
    let left = letters.list(events).await?.len();
    let bills = number(&database, "select count(*) from bills").await?;
    println!("after the retry  {retried:7} {left:14} {bills:7}");
    println!("\nthe error was: {example}\n");

    let orders = number(&database, "select count(distinct order_id) from bills").await?;
    let cents = number(&database, "select sum(cents)::bigint from bills").await?;
    let mut verdict = Verdict::default();
    let poison = events / POISON;
    verdict.claim("only the unreadable events became dead letters", dead.len() as i64, poison);
    verdict.claim("they were given up at the first attempt", (attempts, reasons), (Some(1), true));
    verdict.claim("the other orders were billed meanwhile", billed, events - poison);
    verdict.claim("each order is billed once", (bills, orders), (events, events));
    verdict.claim("the sum is right to the cent", cents, 100 * events * (events + 1) / 2);
    verdict.claim("no dead letter is left", left, 0);
    stage.close().await?;
    Ok(verdict.end())
}
