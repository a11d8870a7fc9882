//! Limits the memory of rows that were read and are not stored yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::PAGE_BYTES;

/// The limit for everything that was read and is not stored yet, in KiB. A single row may take all of it.
const ALL: u32 = 64 * 1024;
const STEP: usize = 1024;

/// The memory of one reader.
#[derive(Debug)]
pub(crate) struct Memory {
    free: Arc<Semaphore>,
    waited_for: AtomicBool,
}

impl Memory {
    /// Whether everything that was read has been stored or set aside.
    pub(crate) fn is_free(&self) -> bool {
        self.free.available_permits() == ALL as usize
    }

    /// Whether the reader waits for memory. It then does not wait for the database.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waited_for.load(Ordering::Relaxed)
    }
}

/// A reserved part of the memory. Dropping it frees the part.
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

    /// Reserves room for a page. Waits until enough of what was read before has been stored.
    pub(crate) async fn of_a_page(all: &Arc<Memory>) -> Self {
        let mut room = Self { all: Some(all.clone()), taken: None };
        // Once as rows, and once as messages.
        room.make(2 * PAGE_BYTES).await;
        room
    }

    /// Enlarges the room to this many bytes. May wait.
    pub(crate) async fn make(&mut self, bytes: usize) {
        let Some(all) = self.all.clone() else { return };
        let wanted = steps(bytes);
        if self.taken.as_ref().is_some_and(|taken| taken.num_permits() >= wanted as usize) {
            return;
        }
        // Two readers that each keep a part and wait for more would wait for ever.
        self.taken = None;
        all.waited_for.store(true, Ordering::Relaxed);
        self.taken = all.free.clone().acquire_many_owned(wanted).await.ok();
        all.waited_for.store(false, Ordering::Relaxed);
    }

    /// Frees what exceeds this many bytes.
    pub(crate) fn keep(&mut self, bytes: usize) {
        if let Some(taken) = &mut self.taken {
            drop(taken.split(taken.num_permits().saturating_sub(steps(bytes) as usize)));
        }
    }
}

fn steps(bytes: usize) -> u32 {
    u32::try_from(bytes / STEP + 1).unwrap_or(ALL).min(ALL)
}
