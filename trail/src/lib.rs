//! What went through the streams, without payloads, and the flow of one order through all services.
//!
//! [`Trail`] is a process that reads the headers of the streams' messages into a table for some days. [`flow`] reads
//! that table and the tables of the services, and tells which event caused which, who handled it and when, and where it
//! is stuck.
//!
//! | module | concept |
//! |---|---|
//! | [`migrations`](mod@migrations) | the tables, which are made only where a trail is wanted |
//! | [`config`] | [`TrailConfig`] |
//! | `trail` | [`Trail`]: reads, writes, waits while something is away |
//! | `following` | reads one stream, past messages that cannot be parsed |
//! | `place` | how far a stream was read, and what proves that it is the same stream |
//! | `row` | a message as a row |
//! | `tables` | writes the rows and the places |
//! | [`flow`] | the flow of an order through all services |
//! | [`state`] | how the trail stands, for health endpoints |
//! | [`status`] | how far it is, for operators |
//! | [`metrics`] | what is counted and measured |

pub mod config;
pub mod flow;
mod following;
pub mod metrics;
pub mod migrations;
mod place;
mod row;
pub mod state;
pub mod status;
mod tables;
mod trail;

pub use config::TrailConfig;
pub use migrations::{migrate, migrate_schema, migrations};
pub use state::TrailState;
pub use trail::Trail;
