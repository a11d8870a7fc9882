//! The contestants, a file each.

pub mod distributed;
pub mod none;
pub mod outbox_core;
pub mod pgq;
pub mod pillarbox;
pub mod poller;
