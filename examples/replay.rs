//! Replay: a projection was wrong. It is built again from the event log, beside the one in use, and then swapped in.
//!
//! ```text
//! cargo run --example replay -- --events 600
//!
//!                     ┌─► balances      ─► table balances_1 ◄─┐
//!  stream LEDGER ─────┤                                       ├─ view balances, for readers
//!  (kept for ever)    └─► balances-g2   ─► table balances_2 ◄─┘  (swapped when caught up)
//! ```
//!
//! The first handler adds refunds instead of subtracting them. Running the fixed handler under the same name would
//! change nothing, because every event counts as handled. Under a new generation every event is new, and the old
//! projection serves readers until the new one has caught up. The exit code is 1 if readers see anything wrong at the
//! end.

mod stage;

use std::process::ExitCode;

use clap::Parser;
use pillarbox::consumer::generation::retire;
use pillarbox::consumer::streams::StreamSpec;
use pillarbox::event::Event;
use pillarbox::{ConsumerConfig, Handler, HandlerError, Router, Tx};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool};
use stage::{Arguments, Stage, Verdict, number, reaches};

const ACCOUNTS: i64 = 20;
const TABLES: &str = "
    create table balances_1 (account bigint primary key, cents bigint);
    create table balances_2 (account bigint primary key, cents bigint);
    create view balances as select * from balances_1;";

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(type = "money.moved", topic = "ledger.moves", key = account)]
struct MoneyMoved {
    account: i64,
    cents: i64,
    refund: bool,
}

/// The projection, in the table of its generation.
struct Balances {
    generation: u32,
    fixed: bool,
}

impl Handler<MoneyMoved> for Balances {
    async fn handle(&self, tx: &mut Tx, moved: MoneyMoved) -> Result<(), HandlerError> {
        let sign = if moved.refund && self.fixed { -1 } else { 1 };
        let sql = format!(
            "insert into balances_{n} as b (account, cents) values ($1, $2) \
             on conflict (account) do update set cents = b.cents + excluded.cents",
            n = self.generation
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(moved.account)
            .bind(sign * moved.cents)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

fn move_of(number: i64) -> MoneyMoved {
    MoneyMoved { account: number % ACCOUNTS, cents: number, refund: number % 5 == 0 }
}

async fn publish(stage: &Stage, numbers: std::ops::Range<i64>) -> anyhow::Result<()> {
    let mut tx = stage.producer().begin().await?;
    let moves: Vec<_> = numbers.map(move_of).collect();
    pillarbox::outbox::publish_all(&mut tx, &moves).await?;
    Ok(tx.commit().await?)
}

async fn sum(database: &PgPool, table: &str) -> anyhow::Result<i64> {
    number(database, &format!("select coalesce(sum(cents), 0)::bigint from {table}")).await
}

fn handled_by(config: &ConsumerConfig) -> String {
    format!("select count(*) from pillarbox.inbox where consumer = '{}'", config.name)
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { events } = Arguments::parse();
    let stage = Stage::open(StreamSpec::event_log("LEDGER", ["ledger.>"])).await?;
    let database = stage.database(TABLES).await?;
    let config = ConsumerConfig::new("LEDGER", "balances");
    let (old, new) = (config.clone(), config.generation(2));

    let first = Router::new().on(Balances { generation: 1, fixed: false });
    let first = stage.start(&database, old.clone(), first).await?;
    let early = events * 2 / 3;
    publish(&stage, 0..early).await?;
    reaches(&database, &handled_by(&old), early).await?;
    let right = |until: i64| -> i64 {
        let moves = (0..until).map(move_of);
        moves.map(|moved| if moved.refund { -moved.cents } else { moved.cents }).sum()
    };
    let wrong_by = sum(&database, "balances").await? - right(early);

    // The fixed handler starts over beside the old one, which still serves readers.
    publish(&stage, early..events).await?;
    let second = Router::new().on(Balances { generation: 2, fixed: true });
    let second = stage.start(&database, new.clone(), second).await?;
    let mut progress = second.status.clone();
    println!("\nrebuilding    handled     left");
    let rebuilt = loop {
        let status = progress.get();
        if let Some(lag) = &status.lag {
            println!("{:>10} {:10} {:8}", status.consumer, status.totals.handled, lag.unhandled());
        }
        let all = status.totals.handled == events.unsigned_abs();
        if (all && status.is_caught_up()) || !progress.changed().await {
            break status;
        }
    };

    reaches(&database, &handled_by(&old), events).await?;
    let before = sum(&database, "balances").await?;
    // Readers see the new projection from their next statement on.
    sqlx::query("create or replace view balances as select * from balances_2")
        .execute(&database)
        .await?;
    let after = sum(&database, "balances").await?;
    first.stop().await?;
    let retired = retire(&stage.jetstream(), &database, &old).await?;
    sqlx::query("drop table balances_1").execute(&database).await?;
    println!(
        "\nreaders saw   {before} before the swap, {after} after it, and {} is right",
        right(events)
    );
    println!("retired       {} rows of the old generation\n", retired.inbox_rows);

    let mut verdict = Verdict::default();
    let refunds: i64 = (0..early).map(move_of).filter(|m| m.refund).map(|m| m.cents).sum();
    verdict.claim("the first projection was wrong by twice the refunds", wrong_by, 2 * refunds);
    verdict.claim("every event was handled again", rebuilt.totals.handled, events.unsigned_abs());
    verdict.claim("readers see the right balances", after, right(events));
    verdict.claim(
        "the old generation's consumer and inbox rows were removed",
        (retired.consumer, retired.inbox_rows),
        (true, events.unsigned_abs()),
    );
    verdict.claim(
        "the inbox has forgotten the old generation",
        number(&database, &handled_by(&old)).await?,
        0,
    );
    verdict.claim(
        "the inbox remembers the new generation",
        number(&database, &handled_by(&new)).await?,
        events,
    );
    second.stop().await?;
    stage.close().await?;
    Ok(verdict.end())
}
