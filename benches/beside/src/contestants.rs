//! The contestants, one file for each.

pub mod distributed;
pub mod none;
pub mod outbox_core;
pub mod pgq;
pub mod pillarbox;
pub mod poller;
