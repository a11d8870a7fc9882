//! What is measured.

pub mod delivery_latency;
pub mod footprint;
pub mod inbox_rate;
pub mod outbox_rate;
pub mod relay_backlog;
pub mod relay_bloat;
pub mod relay_drain;
pub mod relay_keys;
pub mod retention;

pub use delivery_latency::DeliveryLatency;
pub use footprint::Footprint;
pub use inbox_rate::InboxRate;
pub use outbox_rate::OutboxRate;
pub use relay_backlog::RelayBacklog;
pub use relay_bloat::RelayBloat;
pub use relay_drain::RelayDrain;
pub use relay_keys::RelayKeys;
pub use retention::Retention;
