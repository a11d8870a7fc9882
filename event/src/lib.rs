//! Events: what a service says happened, on the way from its outbox to a handler.
//!
//! A typed event names its type, its topic and its key:
//!
//! ```
//! use pillarbox_event::{Event, RawEvent};
//!
//! #[derive(Event, serde::Serialize, serde::Deserialize)]
//! #[event(type = "order.placed", topic = "orders.placed", key = order)]
//! struct OrderPlaced { order: u64, cents: i64 }
//!
//! let event = RawEvent::encode(&OrderPlaced { order: 42, cents: 1999 })?;
//! assert_eq!(event.topic(), "orders.placed");
//! assert_eq!(event.key(), Some("42"));
//! # Ok::<(), pillarbox_event::EventError>(())
//! ```
//!
//! On the wire an event is a [CloudEvent 1.0](https://cloudevents.io) in the binary mode of the NATS binding.
//! [`RawEvent::wire_headers`] writes it, and [`RawEvent::from_wire`] reads it. This crate does no I/O.
//!
//! | module | concept |
//! |---|---|
//! | [`typed`] | [`Event`], and how types become events and events become types |
//! | [`raw`] | [`RawEvent`]: validated attributes, headers and payload bytes |
//! | [`raw_message`] | whether a NATS client can hand a message on, judged by its bytes |
//! | [`id`] | [`EventId`] |
//! | [`identity`] | [`Identity`]: what makes two messages the same event |
//! | [`topic`] | which topics are allowed |
//! | [`partition`] | the number in a subject that lets several processes share the keys of a stream |
//! | [`header`] | the names of headers, and which names and values are allowed |
//! | [`wire`] | writing and reading CloudEvents headers |
//! | [`context`] | the event that is being handled, for causation, correlation and trace |
//! | [`trace`] | the trace that an event carries and that its handler's span joins |
//! | [`error`] | [`EventError`], [`DecodeError`] |

pub mod context;
pub mod error;
pub mod header;
pub mod id;
pub mod identity;
pub mod partition;
pub mod raw;
pub mod raw_message;
pub mod topic;
pub mod trace;
pub mod typed;
pub mod wire;

pub use context::Context;
pub use error::{DecodeError, EventError};
pub use id::EventId;
pub use identity::Identity;
pub use partition::Partition;
pub use pillarbox_event_derive::Event;
pub use raw::{RawEvent, RawEventBuilder};
pub use typed::{Event, FromEvent, IntoEvent};
