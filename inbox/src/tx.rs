//! The transaction of a handler, which outbox and inbox share.

pub use pillarbox_store::{Savepoint, Tx};
