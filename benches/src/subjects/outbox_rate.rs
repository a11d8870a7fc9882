//! What an event in the outbox costs a business transaction.
//!
//! Each writer has its own connection and commits one transaction after the other. *Three statements*: it takes stock,
//! and inserts an order and a payment. *One statement*: it inserts an order. Both run with and without one event of 256
//! bytes, which is written through `pillarbox::outbox::publish`.
//!
//! An event that travels with the commit (`publish_with_commit`) needs the transaction `Tx`, which takes its connection
//! from a pool. So it is compared with the same transaction in a `Tx` without an event.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use pillarbox::Tx;
use pillarbox::event::Event;
use pillarbox_testkit::Servers;
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};
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
    event: Published,
    relay: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Published {
    No,
    /// By a statement of its own, in a transaction of sqlx.
    ByStatement,
    /// Not at all, in a `Tx`.
    NotInTx,
    /// Together with the commit, in a `Tx`.
    WithCommit,
}

#[derive(Clone, Copy, PartialEq)]
enum Statements {
    Three,
    One,
    /// One statement, not counting `begin` and `commit`.
    Alone,
}

const fn way(name: &'static str, statements: Statements, event: Published, relay: bool) -> Way {
    Way { name, statements, event, relay }
}

const THREE: [Way; 5] = [
    way("without", Statements::Three, Published::No, false),
    way("with event", Statements::Three, Published::ByStatement, false),
    way("with event, relay at work", Statements::Three, Published::ByStatement, true),
    way("without, in a Tx", Statements::Three, Published::NotInTx, false),
    way("event with the commit", Statements::Three, Published::WithCommit, false),
];

const ONE: [Way; 6] = [
    way("without", Statements::One, Published::No, false),
    way("with event", Statements::One, Published::ByStatement, false),
    way("with event, relay at work", Statements::One, Published::ByStatement, true),
    way("without, autocommit", Statements::Alone, Published::No, false),
    way("without, in a Tx", Statements::One, Published::NotInTx, false),
    way("event with the commit", Statements::One, Published::WithCommit, false),
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
    const TOPIC: &'static str = SUBJECT;

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
        for (name, ways, goal, with_commit) in
            [("three statements", &THREE[..], 0.85, 0.90), ("one statement", &ONE[..], 0.75, 0.87)]
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
            let goal = Goal::AtLeast(with_commit);
            table.ratio("event with the commit", "without, in a Tx", Some(goal))?;
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
            let mut connection = Writer::connect(outbox.url(), way).await?;
            // Prepare the statements before the clock starts.
            connection.transact(way, u64::MAX / 2 + connections.len() as u64).await?;
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
                    connection.transact(way, order).await?;
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

/// What a writer has for itself: a connection, or a pool of one.
enum Writer {
    Connection(PgConnection),
    Pool(PgPool),
}

impl Writer {
    async fn connect(url: &str, way: Way) -> Result<Self> {
        match way.event {
            Published::No | Published::ByStatement => {
                Ok(Self::Connection(PgConnection::connect(url).await?))
            }
            Published::NotInTx | Published::WithCommit => {
                Ok(Self::Pool(PgPoolOptions::new().max_connections(1).connect(url).await?))
            }
        }
    }

    /// One business transaction.
    async fn transact(&mut self, way: Way, order: u64) -> Result<()> {
        let (item, cents) = (order.wrapping_mul(7919) % ITEMS, 1_995_i64);
        let placed = OrderPlaced { order, item, cents, note: NOTE.into() };
        match self {
            Self::Connection(connection) if way.statements == Statements::Alone => {
                insert_order(connection, order, item, cents).await?;
            }
            Self::Connection(connection) => {
                let mut tx = connection.begin().await?;
                business(&mut tx, way, &placed).await?;
                if way.event == Published::ByStatement {
                    pillarbox::outbox::publish(&mut tx, &placed).await?;
                }
                tx.commit().await?;
            }
            Self::Pool(pool) => {
                let mut tx = Tx::open(pool).await?;
                business(&mut tx, way, &placed).await?;
                if way.event == Published::WithCommit {
                    pillarbox::outbox::publish_with_commit(&mut tx, &placed).await?;
                }
                tx.commit().await?;
            }
        }
        Ok(())
    }
}

/// The business statements of a transaction.
async fn business(connection: &mut PgConnection, way: Way, placed: &OrderPlaced) -> Result<()> {
    let &OrderPlaced { order, item, cents, .. } = placed;
    if way.statements == Statements::Three {
        sqlx::query("update items set stock = stock - 1 where id = $1")
            .bind(item as i64)
            .execute(&mut *connection)
            .await?;
    }
    insert_order(connection, order, item, cents).await?;
    if way.statements == Statements::Three {
        sqlx::query("insert into payments (order_id, cents) values ($1, $2)")
            .bind(order as i64)
            .bind(cents)
            .execute(&mut *connection)
            .await?;
    }
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
