//! The memory that rows may take between the database and the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::PAGE_BYTES;

/// All that has been read and is not stored yet, in steps of a KiB. A single row may be as large as all of it.
const ALL: u32 = 64 * 1024;
const STEP: usize = 1024;

/// The memory of one reader.
#[derive(Debug)]
pub(crate) struct Memory {
    free: Arc<Semaphore>,
    waited_for: AtomicBool,
}

impl Memory {
    /// Whether the reader waits for memory, and so not for the database.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waited_for.load(Ordering::Relaxed)
    }
}

/// A part of the memory. It is free again when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Room {
    all: Option<Arc<Memory>>,
    taken: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// The memory of one reader.
    pub(crate) fn all() -> Arc<Memory> {
        let free = Arc::new(Semaphore::new(ALL as usize));
        Arc::new(Memory { free, waited_for: AtomicBool::new(false) })
    }

    /// Room for a page. Waits until what was read before has been stored.
    pub(crate) async fn of_a_page(all: &Arc<Memory>) -> Self {
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
        all.waited_for.store(true, Ordering::Relaxed);
        self.taken = all.free.clone().acquire_many_owned(wanted).await.ok();
        all.waited_for.store(false, Ordering::Relaxed);
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
