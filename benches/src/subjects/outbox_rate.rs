//! What an event in the outbox costs a business transaction.
//!
//! Each writer has its own connection and commits one transaction after the other. *Three statements*: it takes stock,
//! and inserts an order and a payment. *One statement*: it inserts an order. Both run with and without one event of 256
//! bytes, which is written through `pillarbox::outbox::publish`.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use pillarbox::event::Event;
use pillarbox_testkit::Servers;
use serde::{Deserialize, Serialize};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;

use crate::backlog::{EVENT_TYPE, Outbox, SUBJECT};
use crate::plot::Plot;
use crate::program::{Findings, Subject};
use crate::shipping::{Shipping, config, new_stream};
use crate::table::Table;
use crate::unit::{Goal, Unit};

const ITEMS: u64 = 10_000;
const TABLES: &str = "
    create table items (id bigint primary key, stock bigint not null);
    create table orders (id bigint primary key, item bigint not null, cents bigint not null);
    create table payments (order_id bigint primary key, cents bigint not null);
    insert into items select i, 1000000000 from generate_series(0, 9999) i;";

/// The arguments.
#[derive(Args, Clone, Debug, Serialize)]
pub struct OutboxRate {
    /// Transactions in each round.
    #[arg(default_value_t = 10_000)]
    transactions: u64,
    /// Rounds that count.
    #[arg(default_value_t = 7)]
    rounds: usize,
    /// Connections that write at the same time.
    #[arg(long, default_value_t = 8)]
    writers: u64,
}

#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    statements: Statements,
    event: bool,
    relay: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Statements {
    Three,
    One,
    /// One statement, not counting `begin` and `commit`.
    Alone,
}

const fn way(name: &'static str, statements: Statements, event: bool, relay: bool) -> Way {
    Way { name, statements, event, relay }
}

const THREE: [Way; 3] = [
    way("without", Statements::Three, false, false),
    way("with event", Statements::Three, true, false),
    way("with event, relay at work", Statements::Three, true, true),
];

const ONE: [Way; 4] = [
    way("without", Statements::One, false, false),
    way("with event", Statements::One, true, false),
    way("with event, relay at work", Statements::One, true, true),
    way("without, autocommit", Statements::Alone, false, false),
];

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    order: u64,
    item: u64,
    cents: i64,
    note: Cow<'static, str>,
}

/// With this text, the payload of an event has about 256 bytes.
const NOTE: &str = "Leave it with the neighbours on the second floor, ring twice, and mind the dog, who is \
                    friendly but does not know it yet; if nobody is in, the shed behind the house is open until \
                    eight.";

impl Event for OrderPlaced {
    const TYPE: &'static str = EVENT_TYPE;
    fn topic(&self) -> Cow<'_, str> {
        SUBJECT.into()
    }
    fn key(&self) -> Option<Cow<'_, str>> {
        Some(self.item.to_string().into())
    }
}

impl Subject for OutboxRate {
    const NAME: &'static str = "outbox_rate";

    fn quick() -> Self {
        Self { transactions: 200, rounds: 0, writers: 4 }
    }

    async fn measure(&self, servers: &Servers) -> Result<Findings> {
        let outbox = Outbox::create(&servers.postgres).await?;
        sqlx::raw_sql(TABLES).execute(outbox.pool()).await?;
        new_stream(&servers.nats).await?;
        let mut tables = Vec::new();
        for (name, ways, goal) in
            [("three statements", &THREE[..], 0.85), ("one statement", &ONE[..], 0.75)]
        {
            let title =
                format!("Transactions of {name}, {} writers, default durability", self.writers);
            let names: Vec<_> = ways.iter().map(|way| way.name).collect();
            let mut table =
                Table::measure(&title, Unit::PerSecond, &names, self.rounds, async |way, _| {
                    self.write(servers, &outbox, ways[way]).await
                })
                .await?;
            table.ratio("with event", "without", Some(Goal::AtLeast(goal)))?;
            table.ratio("with event, relay at work", "without", None)?;
            tables.push(table);
        }
        outbox.remove().await?;
        Ok(Findings { tables, plot: Plot::Bars })
    }
}

impl OutboxRate {
    async fn write(&self, servers: &Servers, outbox: &Outbox, way: Way) -> Result<f64> {
        sqlx::raw_sql("truncate orders, payments").execute(outbox.pool()).await?;
        outbox.settle().await?;
        let relay = match way.relay {
            true => Some(Shipping::start_leading(config(outbox, &servers.nats)).await?),
            false => None,
        };
        let mut connections = Vec::new();
        for _ in 0..self.writers {
            let mut connection = PgConnection::connect(outbox.url()).await?;
            // Prepare the statements before the clock starts.
            transact(&mut connection, way, u64::MAX / 2 + connections.len() as u64).await?;
            connections.push(connection);
        }
        let next = Arc::new(AtomicU64::new(0));
        let begin = Instant::now();
        let mut writers = JoinSet::new();
        for mut connection in connections {
            let (next, last) = (next.clone(), self.transactions);
            writers.spawn(async move {
                loop {
                    let order = next.fetch_add(1, Ordering::Relaxed);
                    if order >= last {
                        return Ok(());
                    }
                    transact(&mut connection, way, order).await?;
                }
            });
        }
        for ended in writers.join_all().await {
            let ended: Result<()> = ended;
            ended?;
        }
        let rate = self.transactions as f64 / begin.elapsed().as_secs_f64();
        if let Some(relay) = relay {
            relay.stop().await?;
        }
        Ok(rate)
    }
}

/// One business transaction.
async fn transact(connection: &mut PgConnection, way: Way, order: u64) -> Result<()> {
    let (item, cents) = (order.wrapping_mul(7919) % ITEMS, 1_995_i64);
    if way.statements == Statements::Alone {
        return insert_order(connection, order, item, cents).await;
    }
    let mut tx = connection.begin().await?;
    if way.statements == Statements::Three {
        sqlx::query("update items set stock = stock - 1 where id = $1")
            .bind(item as i64)
            .execute(&mut *tx)
            .await?;
    }
    insert_order(&mut tx, order, item, cents).await?;
    if way.statements == Statements::Three {
        sqlx::query("insert into payments (order_id, cents) values ($1, $2)")
            .bind(order as i64)
            .bind(cents)
            .execute(&mut *tx)
            .await?;
    }
    if way.event {
        let placed = OrderPlaced { order, item, cents, note: NOTE.into() };
        pillarbox::outbox::publish(&mut tx, &placed).await?;
    }
    tx.commit().await?;
    Ok(())
}

async fn insert_order(
    connection: &mut PgConnection,
    order: u64,
    item: u64,
    cents: i64,
) -> Result<()> {
    sqlx::query("insert into orders (id, item, cents) values ($1, $2, $3)")
        .bind(order as i64)
        .bind(item as i64)
        .bind(cents)
        .execute(connection)
        .await?;
    Ok(())
}
