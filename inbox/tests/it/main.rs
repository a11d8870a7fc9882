//! The inbox against a real Postgres: events handed to it by the tests, and HTTP requests.
//!
//! The tests share one Postgres and one nats-server. Each has a database of its own, and a prefix for its streams.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod http;
mod layer;
mod provider;
mod shop;
mod testing;
#[path = "../../../outbox/tests/it/turns.rs"]
mod turns;
mod with_commit;
