//! The outbox against a real Postgres.
//!
//! The tests share one Postgres and one nats-server. Each has a database of its own, and a prefix for its streams.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod clients;
mod interleavings;
mod migrations;
mod outbox;
mod round_trips;
mod scheduled;
mod testing;
mod turns;
mod with_commit;
