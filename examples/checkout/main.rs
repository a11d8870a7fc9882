//! A shop of five services that talk only through events, while relays and services are killed.
//!
//! ```text
//! cargo run --release --example checkout                  # 2,000 orders
//! cargo run --release --example checkout -- --orders 500
//! cargo run --release --example checkout -- --keep        # look around afterwards with psql and nats
//! cargo run --release --example checkout -- --console     # the operator's page, with some trouble on it
//! cargo run --release --example checkout -- --sabotage    # without dedup: the verdict must notice
//! ```
//!
//! No service coordinates the others. Each does its part and publishes an event, and other services react to it.
//!
//! ```text
//!  orders ── order.placed ──► payments ── payment.taken ──► inventory
//!  ▲  ▲  ▲                     │  │  ▲                       │     │
//!  │  │  └── payment.refused ──┘  │  └─────── stock.out ──────┘     │
//!  │  └───── payment.refunded ────┘                                │
//!  └──────────────────────── stock.reserved ───────────────────────┘
//!
//!  orders ── order.completed, order.failed ──► notifications (mails the customer)
//!  orders, payments, inventory ── all events ─► analytics (counts)
//! ```
//!
//! An order ends in one of three ways. It is completed; it fails because the card was refused; or it fails because the
//! goods had run out after it was paid. In the last case there is a compensation: payments gives the money back.
//!
//! Every service has a database with its own tables, an inbox, and, if it publishes events, an outbox. A handler's
//! transaction covers all three: the inbox row that records the event, the service's rows, and the next event. Each
//! service is a process of its own, and so are the relays. The program starts itself again for them, so that it can
//! really kill them.
//!
//! Halfway through the day the relays are killed, then payments, and then old events are delivered again. At the end,
//! the program compares the books of all five databases, order by order. The exit code is 1 if anything is wrong.
//!
//! | read | for |
//! |---|---|
//! | `orders.rs` | placing an order: a row and its event in one transaction |
//! | `payments.rs` | handlers that publish the next event; the compensation |
//! | `inventory.rs`, `notifications.rs`, `analytics.rs` | the other services |
//! | `events.rs` | the events |
//! | `service.rs`, `relays.rs` | what runs in the process of a service, and in that of the relays |
//! | `day.rs`, `trouble.rs`, `redelivery.rs` | what happens here, and what goes wrong |
//! | `audit.rs`, `verdict.rs` | reading the books, and judging them |
#![allow(unreachable_pub)]

mod analytics;
mod assortment;
mod audit;
mod books;
mod children;
mod console;
mod day;
mod events;
mod inventory;
mod notifications;
mod orders;
mod payments;
mod process;
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

/// The role of a child process.
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
            relays::run(&addresses, told_to_stop(process::STOP_DEADLINE)).await?
        }
        Some(Role::Service { service, addresses }) => {
            service::run(service, &addresses, told_to_stop(process::STOP_DEADLINE)).await?;
        }
        None => return day::run(cli.options).await,
    }
    Ok(ExitCode::SUCCESS)
}
