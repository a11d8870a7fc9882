//! The program against real servers: what it ships, shows, refuses and survives.
//!
//! The tests share one Postgres and one nats-server. Each has a database of its own, and a prefix for its streams.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod any_settings;
mod command;
mod commands;
mod config;
mod console;
mod consuming;
mod dead_letters;
mod doctor;
mod documents;
mod faults;
mod foreign_rows;
mod health;
mod hidden_rows;
mod holding;
mod lease;
mod memory;
mod metrics;
mod new_cluster;
mod outboxes;
mod pooler;
mod refilled;
mod replay;
mod security;
mod session;
mod set_aside;
mod sharing;
mod shipping;
mod silent;
mod streams;
mod strict;
mod stuck;
mod support;
mod tls_nats;
mod tls_postgres;
mod trace;
mod trail;
mod traps;
mod unreadable;
