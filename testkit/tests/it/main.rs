//! The testkit itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod find;
mod pgbouncer;
mod proxy;
mod servers;
