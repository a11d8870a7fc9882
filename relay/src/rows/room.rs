//! The memory that rows may take between the database and the broker.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::PAGE_BYTES;

/// All that has been read and is not stored yet, in steps of a KiB. A single row may be as large as all of it.
const ALL: u32 = 64 * 1024;
const STEP: usize = 1024;

/// A part of the memory. It is free again when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Room {
    all: Option<Arc<Semaphore>>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// The memory of one reader.
    pub(crate) fn all() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(ALL as usize))
    }

    /// Room for a page. Waits until what was read before has been stored.
    pub(crate) async fn of_a_page(all: &Arc<Semaphore>) -> Self {
        let mut room = Self { all: Some(all.clone()), taken: None };
        // As the rows come, and as messages.
        room.make(2 * PAGE_BYTES).await;
        room
    }

    /// Makes it large enough for so many bytes.
    pub(crate) async fn make(&mut self, bytes: usize) {
        let Some(all) = self.all.clone() else { return };
        let wanted = steps(bytes);
        if self.taken.as_ref().is_some_and(|taken| taken.num_permits() >= wanted as usize) {
            return;
        }
        // Two that each wait for what the other holds would wait for ever.
        self.taken = None;
        self.taken = all.acquire_many_owned(wanted).await.ok();
    }

    /// Gives back what goes beyond so many bytes.
    pub(crate) fn keep(&mut self, bytes: usize) {
        if let Some(taken) = &mut self.taken {
            drop(taken.split(taken.num_permits().saturating_sub(steps(bytes) as usize)));
        }
    }
}

fn steps(bytes: usize) -> u32 {
    u32::try_from(bytes / STEP + 1).unwrap_or(ALL).min(ALL)
}
