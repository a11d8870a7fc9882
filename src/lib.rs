//! Transactional outbox and idempotent-consumer inbox for Postgres and NATS JetStream.
pub use pillarbox_event as event;
pub use pillarbox_inbox as inbox;
pub use pillarbox_outbox as outbox;
