//! What the inbox takes, what it passes to the handler, and what it returns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pillarbox_event::RawEvent;
use tokio::sync::{Mutex, MutexGuard};
use tower_service::Service;

use crate::error::BoxError;
use crate::store::Begun;
use crate::tx::Tx;

/// One delivery of an event: the request of [`Inbox`](crate::Inbox).
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event.
    pub event: Arc<RawEvent>,
    /// Whether the event is a dead letter that is to be handled after all. See
    /// [`DeadLetter::delivery`](crate::DeadLetter::delivery).
    pub dead_letter: bool,
}

impl From<RawEvent> for Delivery {
    fn from(event: RawEvent) -> Self {
        Arc::new(event).into()
    }
}

impl From<Arc<RawEvent>> for Delivery {
    fn from(event: Arc<RawEvent>) -> Self {
        Self { event, dead_letter: false }
    }
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The handler's effects are committed.
    Handled,
    /// The effects had been committed before, or the event is a dead letter. The handler did not run.
    Duplicate,
    /// The event was stored behind an earlier event of its key that waits among the dead letters and must be handled
    /// first. Without a strict order, that is an event that fails and has many others behind it. With a strict order,
    /// it is any unresolved dead letter.
    Parked,
}

/// A service that a source of events can run: an [`Inbox`](crate::Inbox), perhaps with other layers around it. It is
/// implemented for all that fit.
pub trait DeliveryService:
    Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static
{
}

impl<S> DeliveryService for S where
    S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// An event and the open transaction: the request of the service inside [`Inbox`](crate::Inbox).
#[derive(Clone, Debug)]
pub struct Handling {
    pub(crate) event: Arc<RawEvent>,
    pub(crate) attempt: u32,
    pub(crate) slot: Arc<Slot>,
}

impl Handling {
    /// The event.
    pub fn event(&self) -> &Arc<RawEvent> {
        &self.event
    }

    /// The number of this attempt, from 1: one more than the failed attempts that were counted.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The transaction. The inbox commits it when the service returns success, and not before.
    pub async fn transaction(&self) -> HandlingTransaction<'_> {
        HandlingTransaction { slot: &self.slot, begun: Some(self.slot.begun.lock().await) }
    }
}

/// Access to the transaction of a [`Handling`], for as long as the guard lives.
#[derive(Debug)]
pub struct HandlingTransaction<'a> {
    slot: &'a Slot,
    begun: Option<MutexGuard<'a, Option<Begun>>>,
}

impl HandlingTransaction<'_> {
    /// The transaction, or `None` if the handling is over: it has been committed or rolled back.
    pub fn get(&mut self) -> Option<&mut Tx> {
        let begun = self.begun.as_mut().filter(|_| !self.slot.is_over())?;
        Some(&mut begun.as_mut()?.tx)
    }
}

impl Drop for HandlingTransaction<'_> {
    fn drop(&mut self) {
        // First release the transaction, then check. A task that ends the handling meanwhile either gets the
        // transaction, or has already recorded the end.
        drop(self.begun.take());
        if self.slot.is_over() {
            self.slot.undo();
        }
    }
}

/// The transaction of a handling, until the handling is over. Handlings may be kept or moved to other tasks, but the
/// transaction does not outlive its handling there. It is rolled back.
#[derive(Debug)]
pub(crate) struct Slot {
    begun: Mutex<Option<Begun>>,
    over: AtomicBool,
}

impl Slot {
    pub(crate) fn new(begun: Begun) -> Arc<Self> {
        Arc::new(Self { begun: Mutex::new(Some(begun)), over: AtomicBool::new(false) })
    }

    /// Ends the handling. Returns the transaction, unless it was ended before or another task holds it.
    pub(crate) fn end(&self) -> Option<Begun> {
        self.over.store(true, Ordering::SeqCst);
        self.begun.try_lock().ok()?.take()
    }

    /// Ends the handling, and rolls back its transaction.
    pub(crate) fn undo(&self) {
        if let Some(begun) = self.end() {
            begun.undo_behind();
        }
    }

    /// The transaction, while no other task holds it.
    pub(crate) async fn hold(&self) -> MutexGuard<'_, Option<Begun>> {
        self.begun.lock().await
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// Ends the handling with the future that it belongs to.
#[derive(Debug)]
pub(crate) struct EndOnDrop(pub(crate) Arc<Slot>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.undo();
    }
}
