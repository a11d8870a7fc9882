//! A shop of five services that talk only through events, while relays and services are killed.
//!
//! ```text
//! cargo run --release --example checkout                  # 2,000 orders
//! cargo run --release --example checkout -- --orders 500
//! cargo run --release --example checkout -- --keep        # look around afterwards with psql and nats
//! cargo run --release --example checkout -- --sabotage    # without dedup: the verdict must find it out
//! ```
//!
//! Nobody conducts: each service does its part and says so, and others listen.
//!
//! ```text
//!  orders ── order.placed ──► payments ── payment.taken ──► inventory
//!  ▲  ▲  ▲                     │  │  ▲                       │     │
//!  │  │  └── payment.refused ──┘  │  └─────── stock.out ──────┘     │
//!  │  └───── payment.refunded ────┘                                │
//!  └──────────────────────── stock.reserved ───────────────────────┘
//!
//!  orders ── order.completed, order.failed ──► notifications (mails the customer)
//!  orders, payments, inventory ── all of it ─► analytics (counts)
//! ```
//!
//! An order ends in one of three ways: completed; failed, because the card was refused; failed, because the
//! goods had run out after it was paid. The last one is the compensation: payments gives the money back.
//!
//! Every service has a database, and in it: its own tables; an outbox, if it has something to say; an inbox.
//! A handler's transaction holds all three: the inbox row that makes it once, its own rows, and the next
//! event. Each service is a process of its own, and so are the relays; the program starts itself again for
//! them, so that `kill -9` is the real thing.
//!
//! In the middle of the day the relays are killed, then payments, and then old events are delivered again. At
//! the end the books of all five databases are laid side by side, order by order. Exit code 1 if anything is
//! off.
//!
//! | read | for |
//! |---|---|
//! | `orders.rs` | placing an order: a row and its event in one transaction |
//! | `payments.rs` | handlers that publish the next event; the compensation |
//! | `inventory.rs`, `notifications.rs`, `analytics.rs` | the other services |
//! | `events.rs` | what is said |
//! | `service.rs`, `relays.rs` | what runs in a service's process, and in the relays' |
//! | `day.rs`, `trouble.rs`, `redelivery.rs` | what happens here, and what goes wrong |
//! | `audit.rs`, `verdict.rs` | reading the books, and judging them |
#![allow(unreachable_pub)]

mod analytics;
mod assortment;
mod audit;
mod books;
mod children;
mod day;
mod events;
mod inventory;
mod notifications;
mod orders;
mod payments;
mod progress;
mod redelivery;
mod relays;
mod report;
mod screen;
mod service;
mod shop;
mod trouble;
mod verdict;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pillarbox_testkit::told_to_stop;

use crate::service::Service;
use crate::shop::Addresses;

/// A shop of five services that talk only through events, while relays and services are killed.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: day::Options,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What a child process is to be.
#[derive(Debug, Subcommand)]
enum Role {
    /// The relays of all outboxes.
    #[command(hide = true)]
    Relays {
        #[command(flatten)]
        addresses: Addresses,
    },
    /// One service.
    #[command(hide = true)]
    Service {
        service: Service,
        #[command(flatten)]
        addresses: Addresses,
    },
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
    match cli.role {
        Some(Role::Relays { addresses }) => {
            relays::run(&addresses, told_to_stop(children::STOP_DEADLINE)).await?
        }
        Some(Role::Service { service, addresses }) => {
            service::run(service, &addresses, told_to_stop(children::STOP_DEADLINE)).await?;
        }
        None => return day::run(cli.options).await,
    }
    Ok(ExitCode::SUCCESS)
}
