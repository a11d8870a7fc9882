//! Asks the database whether it is there, when nothing has ended for a while.
//!
//! A lost database shows late by itself: a pool goes on connecting until its `acquire_timeout` is over (30 s, if it
//! was not set), and a handler waits for an answer until its own time is up. A busy pool and a slow handler look the
//! same meanwhile. So when this consumer has waited for a second and nothing has ended, the database is asked over a
//! connection of its own, not one of the pool's. If it does not answer, the consumer pauses, and what waits goes on
//! waiting; if it does, all is well, and it is asked again after two, four, and every five seconds more.
//!
//! ```text
//!   idle ── something begins ──► waiting ── a second ──► asking ── no answer ──► the consumer pauses
//!     ▲                            │  ▲                    │
//!     └─ nothing is left to wait for  └─ something ends ───┴── it answers: ask again, later
//! ```

use std::time::Duration;

use pillarbox_inbox::source::Store;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long nothing may end before the database is asked.
const FIRST: Duration = Duration::from_secs(1);

/// How long between two questions, at the most.
const LONGEST: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Pulse {
    store: Store,
    ask_at: Instant,
    wait: Duration,
    asking: JoinSet<Option<String>>,
}

impl Pulse {
    pub(super) fn new(store: Store) -> Self {
        Self { store, ask_at: Instant::now() + FIRST, wait: FIRST, asking: JoinSet::new() }
    }

    /// Something has begun after nothing was waited for, or has ended.
    pub(super) fn beat(&mut self) {
        self.wait = FIRST;
        self.ask_at = Instant::now() + FIRST;
    }

    /// When to ask, if something is waited for; `None` while that is done.
    pub(super) fn ask_at(&self) -> Option<Instant> {
        self.asking.is_empty().then_some(self.ask_at)
    }

    pub(super) fn ask(&mut self) {
        self.wait = (2 * self.wait).min(LONGEST);
        let store = self.store.clone();
        self.asking.spawn(async move { store.unreachable().await });
    }

    /// Why there is no database, if that was found. Pending while nobody asks. Safe to cancel.
    pub(super) async fn answered(&mut self) -> Option<String> {
        match self.asking.join_next().await {
            Some(answer) => {
                self.ask_at = Instant::now() + self.wait;
                answer.ok().flatten()
            }
            None => std::future::pending().await,
        }
    }
}
