//! Ships committed outbox rows to NATS JetStream: in order per key, losing nothing.
//!
//! ```no_run
//! use pillarbox_relay::{Relay, RelayConfig};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> Result<(), pillarbox_relay::RelayError> {
//! let shutdown = CancellationToken::new();
//! let config = RelayConfig {
//!     database_url: "postgres://localhost/shop".into(),
//!     nats_url: "nats://localhost:4222".into(),
//!     ..RelayConfig::default()
//! };
//! Relay::new(config)?.run(shutdown).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The command `pillarbox relay`, of the crate `pillarbox-cli`, does the same. Data flows one way:
//!
//! ```text
//!  outbox ──► source ──► reader ──► shipper ──► sink ──► stream
//!               ▲        (pages)       │ progress
//!             cursor ◄── lease ◄───────┘
//! ```
//!
//! | module | concept |
//! |---|---|
//! | [`cursor`] | the relay's place, a Postgres snapshot, and the rules it moves by: start reading here |
//! | `table` | which table is the outbox, and which sequence gives out its positions |
//! | `source` | the next page behind a cursor |
//! | `rows` | rows read without trusting their size or that they can be read |
//! | `reader`, `pauses` | pages read ahead, polling |
//! | `message` | a row as a message |
//! | `shipper` | from pages to the sink; rewinding, holding |
//! | `sink` | storing messages in streams, in order: fast ingest and keyed window; whose fault a failure is |
//! | `streams`, `acknowledged` | what the JetStream API and the acknowledgements tell of streams |
//! | `refused` | events that can never be stored, and why |
//! | `interrupted` | why shipping stops and starts again |
//! | [`broker`], `tls` | the connection to NATS: TLS, login, and what to mend when they are refused |
//! | `dead_letters` | dead and parked events, as the shipper meets them |
//! | `parking` | shipping parked events, and holding back the keys that wait |
//! | `checkpoint` | going back when the broker has forgotten what it had acknowledged |
//! | `lease` | one leader, any number of standbys; the only writer of the cursor |
//! | `relay` | [`Relay`]: stands by, leads, stops |
//! | `sharing`, `relays` | [`Relays`]: several outboxes in a process, shared evenly among processes |
//! | [`replay`] | sending shipped events again, on purpose |
//! | `retention` | removing old rows |
//! | [`removal`] | removing a relay that is gone |
//! | `scheduled` | moving scheduled events into the outbox when they are due |
//! | [`health`] | how a relay stands, for health endpoints |
//! | [`metrics`] | what is counted and measured |
//! | `backlog` | measuring the backlog for the metrics |
//! | [`session`] | opens every connection to the database, all with the same settings |
//! | [`status`] | backlog, oldest age, cursor and holder, for operators |
//! | [`config`] | [`RelayConfig`] |
//! | [`error`] | [`RelayError`] |

mod acknowledged;
mod backlog;
pub mod broker;
mod checkpoint;
pub mod config;
pub mod cursor;
mod dead_letters;
pub mod error;
pub mod health;
mod interrupted;
mod lease;
mod message;
pub mod metrics;
mod parking;
mod pauses;
mod places;
mod reader;
mod refused;
mod relay;
mod relays;
pub mod removal;
pub mod replay;
mod retention;
mod rows;
mod scheduled;
pub mod session;
mod sharing;
mod shipper;
mod sink;
mod source;
pub mod status;
mod streams;
mod table;
mod tls;

pub use broker::BrokerError;
pub use config::{ConfigError, NatsConfig, NoStream, RelayConfig, ShippingOrder, SinkChoice};
pub use error::RelayError;
pub use health::{RelayState, Role};
pub use relay::Relay;
pub use relays::Relays;
pub use scheduled::Scheduled;
pub use session::{Database, SessionError};
pub use sharing::Notice;
pub use status::RelayStatus;
pub use streams::{StreamMark, StreamMarks};
