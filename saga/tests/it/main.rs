//! Sagas: alone, against a real Postgres, and all the way through relay and stream.
//!
//! The tests share one Postgres and one nats-server. Each has a database of its own, and a prefix for its streams.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bad_input;
mod database;
mod given;
mod measured;
mod operators;
mod search_path;
mod streams;
mod trips;
