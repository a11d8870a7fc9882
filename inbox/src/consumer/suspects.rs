//! Events that may kill the process, by a stack overflow, an abort, or all the memory there is.
//!
//! Such an event comes again and again and takes every other one with it, so it has to be found; and an event
//! that merely ran beside it, or while the machine lost power, must not be taken for it. The broker's count of
//! deliveries cannot tell: it also grows with outages, lost acknowledgements and redeliveries of any kind, and
//! starts anew with a reset. So:
//!
//! - An event that is delivered for the first time runs without ado, and costs nothing.
//! - One that was delivered before is *marked* as begun in the database, and the mark goes with its end,
//!   whichever that is: success, failure, a clean stop. A mark that is found belongs to a process that died.
//! - An event that is found marked runs *alone*. Is it innocent, it ends, and the mark is gone.
//! - One that is found marked from a run alone is given up.
//!
//! ```text
//!   delivered ── died ──► again: marked ── died ──► alone: marked twice ── died ──► dead letter
//!                              │                         │
//!                              └──────── ended ──────────┴──────► as any other event
//! ```
//!
//! That is three processes that died with the event in work, the third with nothing else in work. A consumer
//! whose future is dropped counts as one that died; one that is stopped by its token does not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillarbox_event::{Identity, RawEvent};
use tokio::time::timeout;

use crate::store::{Marked, Store};

/// How long a clean stop may take to remove the marks of what it dropped.
const UNMARK_TIMEOUT: Duration = Duration::from_secs(2);

/// The marks that this process has set. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Suspects {
    store: Store,
    marked: Arc<Mutex<BTreeSet<Identity>>>,
}

/// How an event that was delivered before is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// As any other.
    Run,
    /// With nothing beside it.
    RunAlone,
    /// Not at all: it kills the process.
    Kills,
}

impl Suspects {
    pub(super) fn new(store: Store) -> Self {
        Self { store, marked: Arc::default() }
    }

    /// Marks an event as begun.
    pub(super) async fn begin(&self, event: &RawEvent, alone: bool) -> Result<Ruling, sqlx::Error> {
        let identity = event.identity();
        if self.marked().contains(&identity) {
            return Ok(Ruling::Run);
        }
        let ruling = match self.store.mark(event, alone).await? {
            // The inbox will say so; it also waits for whoever makes a dead letter an event again.
            Marked::Handled => return Ok(Ruling::Run),
            Marked::Started(0) => Ruling::Run,
            Marked::Started(1) if alone => Ruling::Run,
            Marked::Started(1) => return Ok(Ruling::RunAlone),
            Marked::Started(_) => return Ok(Ruling::Kills),
        };
        self.marked().insert(identity);
        Ok(ruling)
    }

    /// The event has ended, and the database knows.
    pub(super) fn ended(&self, event: &Identity) {
        self.marked().remove(event);
    }

    /// The event has ended, and the database is to be told. If that fails, the mark is still this process's
    /// own, and found so by [`begin`](Self::begin).
    pub(super) async fn unmark(&self, event: &Identity) {
        if self.marked().contains(event) && self.store.unmark(&[event.to_string()]).await.is_ok() {
            self.ended(event);
        }
    }

    /// Nothing is in work any more.
    pub(super) async fn unmark_all(&self) {
        let ids: Vec<String> =
            std::mem::take(&mut *self.marked()).iter().map(Identity::to_string).collect();
        if !ids.is_empty() {
            let unmarked = timeout(UNMARK_TIMEOUT, self.store.unmark(&ids)).await;
            if !matches!(unmarked, Ok(Ok(()))) {
                tracing::debug!("marks were left behind by a stop");
            }
        }
    }

    fn marked(&self) -> MutexGuard<'_, BTreeSet<Identity>> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
