//! A service with axum and sqlx, before and after Pillarbox: the same orders, the same customers, the same trouble.
//!
//! ```text
//! cargo run --release --example add_to_axum               # 60 orders
//! cargo run --release --example add_to_axum -- --orders 200
//! ```
//!
//! Customers place orders over HTTP. Every fifth customer sends the order twice, because the answer was lost on the
//! way. Halfway, the service is killed (SIGKILL) during a request, right after it has written the order, and that
//! customer asks again too. Each order should exist once, and should be mailed once.
//!
//! | read | for |
//! |---|---|
//! | `before.rs` | the service as it was: it writes the order, and then tells the broker |
//! | `after.rs` | the service with Pillarbox; everything that was added is in this file |
//! | `customers.rs` | the requests, and the trouble |
//! | `process.rs` | the service's process, which can be killed |
//! | `verdict.rs` | what came of it |
//!
//! The example starts its own servers for both. It makes two claims: in `after`, everything exists once; in `before`,
//! it does not, which shows that the trouble is real. The exit code is 1 if a claim does not hold.
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

/// A service with axum and sqlx, before and after Pillarbox.
#[derive(Debug, Parser)]
struct Cli {
    /// How many orders each of the two services gets.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(i64).range(10..=5_000))]
    orders: i64,
    #[command(subcommand)]
    child: Option<Child>,
}

#[derive(Debug, clap::Subcommand)]
enum Child {
    /// Runs the service.
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

/// Lets all customers order, and then reads the books.
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
