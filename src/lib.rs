//! Transactional outbox and idempotent consumer for Postgres and NATS JetStream.
//!
//! A service writes an event in the same transaction as its rows ([`outbox`]). The program `pillarbox relay` ships what
//! was committed. A [`consumer`] reads events from JetStream and handles each of them once, in a transaction that also
//! records that the event was handled ([`inbox`]).
//!
//! ```no_run
//! use pillarbox::{HandlerError, RawEvent, Tx};
//!
//! /// A handler: its row and the event that it publishes commit together with the record that `placed` was handled.
//! async fn charge(tx: &mut Tx, placed: RawEvent) -> Result<(), HandlerError> {
//!     sqlx::query("insert into charges (order_id) values ($1)").bind(placed.key()).execute(&mut **tx).await?;
//!     let taken = RawEvent::builder("payment.taken", "payments.taken").build()?;
//!     pillarbox::outbox::publish(tx, taken).await?;
//!     Ok(())
//! }
//! ```
//!
//! The README shows a complete producer and a complete consumer, and says exactly what is promised.
//!
//! | module | crate | what it is |
//! |---|---|---|
//! | [`event`] | `pillarbox-event` | events and their CloudEvents headers |
//! | [`outbox`] | `pillarbox-outbox` | writing events in a transaction |
//! | [`inbox`] | `pillarbox-inbox` | handling each event once, wherever it comes from |
//! | [`consumer`] | `pillarbox-consumer` | events from JetStream, for the inbox |
//! | | `pillarbox-relay` | the relay, as a library |
//! | | `pillarbox-cli` | the program `pillarbox`: the relay, and commands for operators |
//! | | `pillarbox-testkit` | throwaway servers for tests |
//!
//! The items that most services need are also at the root.

pub use pillarbox_consumer as consumer;
pub use pillarbox_event as event;
pub use pillarbox_inbox as inbox;
pub use pillarbox_outbox as outbox;

pub use pillarbox_consumer::{Consumer, ConsumerConfig, ConsumerError, Order};
pub use pillarbox_event::{Event, RawEvent};
pub use pillarbox_inbox::{
    BatchHandler, Handler, HandlerError, Received, Router, Tx, batch_fn, handler_fn,
};

/// Compiles the guide's code.
#[cfg(doctest)]
#[doc = include_str!("../docs/guides/http-commands.md")]
struct HttpCommands;

/// Compiles the README's code.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles the guides' code.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../docs/guides/adding.md")]
    struct Adding;
    #[doc = include_str!("../docs/guides/choosing.md")]
    struct Choosing;
    #[doc = include_str!("../docs/guides/ordering.md")]
    struct Ordering;
    #[doc = include_str!("../docs/guides/effects.md")]
    struct Effects;
    #[doc = include_str!("../docs/guides/sagas.md")]
    struct Sagas;
    #[doc = include_str!("../docs/guides/failures.md")]
    struct Failures;
    #[doc = include_str!("../docs/guides/layers.md")]
    struct Layers;
    #[doc = include_str!("../docs/guides/seeing.md")]
    struct Seeing;
}
