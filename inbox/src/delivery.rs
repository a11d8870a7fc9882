//! What the inbox takes, what it hands in, and what comes out.

use std::sync::Arc;

use pillarbox_event::RawEvent;
use tokio::sync::{Mutex, MutexGuard};

use crate::handler::Tx;

/// One delivery of an event: the request of [`Inbox`](crate::Inbox).
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event.
    pub event: Arc<RawEvent>,
}

impl From<RawEvent> for Delivery {
    fn from(event: RawEvent) -> Self {
        Self { event: Arc::new(event) }
    }
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The handler's effects are committed.
    Handled,
    /// They had been committed before; the handler did not run.
    Duplicate,
}

/// An event and the open transaction: the request of the service inside [`Inbox`](crate::Inbox).
#[derive(Clone, Debug)]
pub struct Handling {
    pub(crate) event: Arc<RawEvent>,
    pub(crate) attempt: u32,
    pub(crate) slot: Arc<Mutex<Option<Tx>>>,
}

impl Handling {
    /// The event.
    pub fn event(&self) -> &Arc<RawEvent> {
        &self.event
    }

    /// Which attempt this is, from 1: one more than have failed and were counted.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The transaction. The inbox commits it when the service returns success, and not before.
    pub async fn transaction(&self) -> HandlingTransaction<'_> {
        HandlingTransaction(self.slot.lock().await)
    }
}

/// The transaction of a [`Handling`], held.
#[derive(Debug)]
pub struct HandlingTransaction<'a>(MutexGuard<'a, Option<Tx>>);

impl HandlingTransaction<'_> {
    /// The transaction, or `None` if the handling is over: it has been committed or rolled back.
    pub fn get(&mut self) -> Option<&mut Tx> {
        self.0.as_mut()
    }
}
