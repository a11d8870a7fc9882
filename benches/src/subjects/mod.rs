//! The subjects, each with the main function of its program.
//!
//! The functions are here and not in the programs, so that a subject is compiled once for its program and for the
//! tests.

pub mod delivery_latency;
pub mod footprint;
pub mod inbox_rate;
pub mod outbox_rate;
pub mod relay_backlog;
pub mod relay_bloat;
pub mod relay_drain;
pub mod relay_keys;
pub mod retention;
pub mod saga_rate;
pub mod scheduled;
pub mod skipping;
pub mod trail_rate;

use anyhow::Result;

use crate::program;

pub use delivery_latency::DeliveryLatency;
pub use footprint::Footprint;
pub use inbox_rate::InboxRate;
pub use outbox_rate::OutboxRate;
pub use relay_backlog::RelayBacklog;
pub use relay_bloat::RelayBloat;
pub use relay_drain::RelayDrain;
pub use relay_keys::RelayKeys;
pub use retention::Retention;
pub use saga_rate::SagaRate;
pub use scheduled::Scheduled;
pub use skipping::Skipping;
pub use trail_rate::TrailRate;

/// The program `delivery_latency`.
///
/// # Errors
/// Any error that stops the program.
pub fn delivery_latency() -> Result<()> {
    program::main::<DeliveryLatency>()
}

/// The program `footprint`.
///
/// # Errors
/// Any error that stops the program.
pub fn footprint() -> Result<()> {
    program::main::<Footprint>()
}

/// The program `inbox_rate`.
///
/// # Errors
/// Any error that stops the program.
pub fn inbox_rate() -> Result<()> {
    program::main::<InboxRate>()
}

/// The program `outbox_rate`.
///
/// # Errors
/// Any error that stops the program.
pub fn outbox_rate() -> Result<()> {
    program::main::<OutboxRate>()
}

/// The program `relay_backlog`.
///
/// # Errors
/// Any error that stops the program.
pub fn relay_backlog() -> Result<()> {
    program::main::<RelayBacklog>()
}

/// The program `relay_bloat`.
///
/// # Errors
/// Any error that stops the program.
pub fn relay_bloat() -> Result<()> {
    program::main::<RelayBloat>()
}

/// The program `relay_drain`.
///
/// # Errors
/// Any error that stops the program.
pub fn relay_drain() -> Result<()> {
    program::main::<RelayDrain>()
}

/// The program `relay_keys`.
///
/// # Errors
/// Any error that stops the program.
pub fn relay_keys() -> Result<()> {
    program::main::<RelayKeys>()
}

/// The program `retention`.
///
/// # Errors
/// Any error that stops the program.
pub fn retention() -> Result<()> {
    program::main::<Retention>()
}

/// The program `saga_rate`.
///
/// # Errors
/// Any error that stops the program.
pub fn saga_rate() -> Result<()> {
    program::main::<SagaRate>()
}

/// The program `scheduled`.
///
/// # Errors
/// Any error that stops the program.
pub fn scheduled() -> Result<()> {
    program::main::<Scheduled>()
}

/// The program `skipping`.
///
/// # Errors
/// Any error that stops the program.
pub fn skipping() -> Result<()> {
    program::main::<Skipping>()
}

/// The program `trail_rate`.
///
/// # Errors
/// Any error that stops the program.
pub fn trail_rate() -> Result<()> {
    program::main::<TrailRate>()
}
