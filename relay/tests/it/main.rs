//! The relay as a library: models, properties, and histories against real servers.
//!
//! The tests share one Postgres and one nats-server. Each has a database of its own, and a prefix for its streams.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod histories;
mod model;
mod properties;
mod retention;
mod rows;
mod scheduled;
mod support;
