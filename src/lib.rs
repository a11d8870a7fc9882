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
//! | [`saga`] | `pillarbox-saga` | processes over many events, with timers and compensation |
//! | `relay` (feature `relay`) | `pillarbox-relay` | the relay, as a library |
//! | [`service`] | | one process with HTTP, consumers and a relay, started and stopped in order |
//! | `testing` (feature `testing`) | | what a service's own tests need |
//! | | `pillarbox-cli` | the program `pillarbox`: the relay, and commands for operators |
//! | | `pillarbox-testkit` | throwaway servers for tests |
//!
//! The items that most services need are also at the root.

pub use pillarbox_consumer as consumer;
pub use pillarbox_inbox as inbox;
pub use pillarbox_outbox as outbox;
#[cfg(feature = "relay")]
pub use pillarbox_relay as relay;
pub use pillarbox_saga as saga;

pub mod service;
#[cfg(feature = "testing")]
pub mod testing;

pub use pillarbox_consumer::{Consumer, ConsumerConfig, ConsumerError, HandlingOrder};
pub use pillarbox_inbox::{BatchHandler, Handler, HandlerError, Received, Router, Tx, with_state};
pub use pillarbox_saga::{Saga, Step};

pub use event::{Event, RawEvent};

pub mod event {
    //! Events and their CloudEvents headers: the crate `pillarbox-event`.

    // The same derive macro, for services that depend on this crate alone.
    pub use pillarbox_event::typed::Event;
    #[doc(no_inline)]
    pub use pillarbox_event::*;
    pub use pillarbox_event_derive::FacadeEvent as Event;
}

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
    #[doc = include_str!("../docs/guides/changing-events.md")]
    struct ChangingEvents;
    #[doc = include_str!("../docs/guides/choosing.md")]
    struct Choosing;
    #[doc = include_str!("../docs/guides/ordering.md")]
    struct Ordering;
    #[doc = include_str!("../docs/guides/effects.md")]
    struct Effects;
    #[doc = include_str!("../docs/guides/sagas.md")]
    struct Sagas;
    #[doc = include_str!("../docs/guides/scheduled-events.md")]
    struct ScheduledEvents;
    #[doc = include_str!("../docs/guides/failures.md")]
    struct Failures;
    #[doc = include_str!("../docs/guides/other-clients.md")]
    struct OtherClients;
    #[doc = include_str!("../docs/guides/layers.md")]
    struct Layers;
    #[doc = include_str!("../docs/guides/seeing.md")]
    struct Seeing;
    #[doc = include_str!("../docs/guides/testing.md")]
    struct Testing;
    #[doc = include_str!("../docs/guides/one-process.md")]
    struct OneProcess;
}
