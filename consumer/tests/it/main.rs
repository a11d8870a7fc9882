//! The consumer against real servers.
//!
//! The tests share one Postgres and one nats-server. Each has a database of its own, and a prefix for its streams.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod batch;
mod commit;
mod consumer;
mod control;
mod domain;
mod drift;
mod followers;
mod forgotten;
mod hidden_rows;
mod identity;
mod kept;
mod letters;
mod lives;
mod log;
mod outage;
mod own_deaths;
mod own_failure;
mod partitions;
mod pooler;
mod processes;
mod provider;
mod removed;
mod retention;
mod search_path;
mod silent_database;
mod skipping;
mod status;
mod streams;
mod strict;
mod support;
mod takeover;
mod topics;
mod transactions;
mod undecodable;
mod unreadable;
