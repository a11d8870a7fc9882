//! An axum and sqlx service before and after Pillarbox: the same orders, the same customers, the same trouble.
//!
//! ```text
//! cargo run --release --example add_to_axum               # 60 orders
//! cargo run --release --example add_to_axum -- --orders 200
//! ```
//!
//! Customers place orders over HTTP. Every fifth sends its order twice, because the answer got lost on the way;
//! in the middle the service is killed (SIGKILL) with a request in hand, right after it has written the order, and
//! that customer asks again too. Each order is to be there once, and to be mailed once.
//!
//! | read | for |
//! |---|---|
//! | `before.rs` | the service as it was: it writes the order, then tells the broker, and hopes |
//! | `after.rs` | the service with Pillarbox: what was added is all in this file |
//! | `customers.rs` | the requests, and the trouble |
//! | `process.rs` | the service's process, which can be killed |
//! | `verdict.rs` | what came of it |
//!
//! Both are started on servers that the example starts itself. Exit code 1 if a claim does not hold: the one
//! about `after`, that everything is there once; and the one about `before`, that it is not, or the trouble
//! would not be worth the name.
#![allow(unreachable_pub)]

mod after;
mod before;
mod customers;
mod order;
mod process;
mod verdict;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use pillarbox_testkit::Servers;

use crate::order::Books;
use crate::process::{Which, Work};

/// An axum and sqlx service before and after Pillarbox.
#[derive(Debug, Parser)]
struct Cli {
    /// How many orders are placed with each.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(i64).range(10..=5_000))]
    orders: i64,
    #[command(subcommand)]
    child: Option<Child>,
}

#[derive(Debug, clap::Subcommand)]
enum Child {
    /// Be the service.
    #[command(hide = true)]
    Serve(Work),
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "warn,sqlx=error".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let cli = Cli::parse();
    if let Some(Child::Serve(work)) = cli.child {
        process::serve(work).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let servers = Servers::start().await?;
    let before = day(&servers, Which::Before, cli.orders).await.context("before")?;
    let after = day(&servers, Which::After, cli.orders).await.context("after")?;
    Ok(if verdict::show(&before, &after) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All customers come, and then the books are read.
async fn day(servers: &Servers, which: Which, orders: i64) -> anyhow::Result<Books> {
    let pool = servers.postgres.create_database(which.name()).await?.pool;
    sqlx::raw_sql(order::TABLES).execute(&pool).await?;
    let work = Work {
        which,
        database: servers.postgres.url(which.name()),
        nats: servers.nats.url(),
        stuck_with: Some(orders / 2),
    };
    let told = customers::visit(orders, work).await?;
    order::audit(&pool, orders, &told).await
}
