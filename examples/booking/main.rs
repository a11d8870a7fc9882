//! Trips of a flight, a hotel, a car and a payment, booked by a saga while things go wrong.
//!
//! ```text
//! cargo run --release --example booking                 # 200 trips
//! cargo run --release --example booking -- --trips 500
//! cargo run --release --example booking -- --sabotage   # without dedup: the verdict must notice
//! ```
//!
//! The saga (`trip.rs`) asks one provider after the other and waits for each answer, but not for long. If one refuses
//! or does not answer in time, it cancels all that it has asked for, the newest first, and the trip has failed when all
//! of them have confirmed that.
//!
//! ```text
//!  trip.requested ──► saga ── book ──► flight, then hotel, then car, then payment
//!                      ▲ │               │
//!                      │ └── cancel ──►  │
//!                      └─ booked, refused, cancelled
//! ```
//!
//! Each provider is a service with a database and a process of its own; so is the saga, and the relays have a process,
//! too. The program starts itself again for them, so that it can really kill them (SIGKILL). Hotels refuse some trips,
//! so do cars (after two bookings) and payments (after three). Some hotels answer after the deadline. For four seconds,
//! the payment provider is away. The saga, a provider and the relays are killed in the middle of their work, and
//! started again. All messages are delivered twice, and trips are requested twice. The verdict compares the books of
//! all services, trip by trip. The exit code is 1 if anything is wrong.
#![allow(unreachable_pub)]

mod books;
mod events;
#[path = "../checkout/process.rs"]
mod process;
mod provider;
mod service;
mod trip;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use pillarbox::outbox;
use pillarbox_testkit::told_to_stop;
use tokio::time::sleep;

use crate::events::TripRequested;
use crate::process::STOP_DEADLINE;
use crate::service::Role;
use crate::world::World;

/// Trips of a flight, a hotel, a car and a payment, booked by a saga while things go wrong.
#[derive(Debug, Parser)]
struct Options {
    /// How many trips are requested.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(i64).range(20..=10_000))]
    trips: i64,
    /// Make the inboxes forget what they have handled, just before all is delivered again. The verdict must notice.
    #[arg(long)]
    sabotage: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt().with_env_filter("error").with_writer(std::io::stderr).init();
    let Options { trips, sabotage, role } = Options::parse();
    if let Some(role) = role {
        service::run(role, told_to_stop(STOP_DEADLINE)).await?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("starting Postgres and nats-server; the first time they may have to be fetched");
    let mut world = World::open().await?;
    println!("{trips} trips, a saga, 4 providers, 5 databases, 6 processes, 1 stream");

    request(&world, 1..=trips / 2).await?;
    world.until_ended(trips / 8).await?;
    let pid = world.kill_and_restart("saga").await?;
    println!("KILLED the saga (process {pid}), and started it again");
    world.payment_is_away(true).await?;
    println!("AWAY: the payment provider answers nobody");
    request(&world, trips / 2 + 1..=trips).await?;
    sleep(Duration::from_secs(4)).await;
    world.payment_is_away(false).await?;
    println!("BACK: the payment provider");
    let pid = world.kill_and_restart("relays").await?;
    println!("KILLED the relays (process {pid}), and started them again");
    world.until_ended(trips * 3 / 4).await?;
    let pid = world.kill_and_restart("hotel").await?;
    println!("KILLED the hotels (process {pid}), and started them again");
    world.until_ended(trips).await?;
    world.until_quiet().await?;

    if sabotage {
        world.forget().await?;
        println!("SABOTAGE: the inboxes have forgotten what was handled");
    }
    let again = world.deliver_all_again().await?;
    println!("DELIVERED all {again} messages again");
    // The same trips, requested by events of their own.
    request(&world, 1..=trips / 10).await?;
    println!("REQUESTED {} trips again", trips / 10);
    world.until_quiet().await?;

    let books = world.books(trips, trips / 10).await?;
    let well = books::report(&books);
    world.close().await?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Requests trips, as a web page would.
async fn request(world: &World, trips: std::ops::RangeInclusive<i64>) -> anyhow::Result<()> {
    let mut tx = world.trips().begin().await?;
    let requested = trips.map(|trip| TripRequested { trip, cents: 10_000 + trip });
    outbox::publish_all(&mut tx, requested).await?;
    tx.commit().await?;
    Ok(())
}
