//! Parked events, which the consumer takes from the table and handles as any other.
//!
//! ```text
//!                the last attempt failed           retried by an operator
//!   stream ───────────────────────────────► dead ─────────────────────────► parked
//!      │                                     ▲                                │ ▲
//!      │                                     └──── fails again, to the last ──┤ │
//!      │                                                            handled ──┴─┼─► retried
//!      └── Order::Strict, and an unresolved event of its key is here ───────────┘
//! ```
//!
//! About once a second, and when one of them has ended, a consumer takes what is due: of each key the first. The
//! database sees to the order, and to it that each has one taker at a time: see `due.sql` and `release.sql`. What
//! fails waits in the table for its next attempt, so that no process holds more than it runs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pillarbox_inbox::DeadLetter;
use pillarbox_inbox::source::Store;
use pillarbox_store::full_text;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::config::ConsumerConfig;
use super::incoming::Content;

/// How often parked events are looked for.
const INTERVAL: Duration = Duration::from_secs(1);

/// How much longer than its handler an event is taken for.
const MARGIN: Duration = Duration::from_secs(5);

/// The parked events that this process has taken.
#[derive(Debug)]
pub(super) struct Letters {
    store: Store,
    lease: Duration,
    most: usize,
    taken: HashSet<i64>,
    look_at: Instant,
    looking: JoinSet<Vec<Letter>>,
}

/// A parked event, taken.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) position: i64,
    pub(super) content: Arc<Content>,
}

impl Letters {
    pub(super) fn new(store: Store, config: &ConsumerConfig) -> Self {
        Self {
            store,
            lease: config.handler_timeout() + MARGIN,
            most: config.concurrency,
            taken: HashSet::new(),
            look_at: Instant::now(),
            looking: JoinSet::new(),
        }
    }

    /// When to look for more; `None` while that is done, or would be of no use.
    pub(super) fn look_at(&self) -> Option<Instant> {
        (self.looking.is_empty() && self.taken.len() < self.most).then_some(self.look_at)
    }

    /// Whether the database is being asked for more.
    pub(super) fn is_looking(&self) -> bool {
        !self.looking.is_empty()
    }

    pub(super) fn look(&mut self) {
        self.look_at = Instant::now() + INTERVAL;
        let (store, lease, most) =
            (self.store.clone(), self.lease, self.most.saturating_sub(self.taken.len()));
        self.looking.spawn(async move { take(&store, lease, most).await });
    }

    /// What was found. Pending while nobody looks. Safe to cancel.
    pub(super) async fn found(&mut self) -> Vec<Letter> {
        match self.looking.join_next().await {
            Some(found) => {
                let mut found = found.unwrap_or_default();
                found.retain(|letter| self.taken.insert(letter.position));
                found
            }
            None => std::future::pending().await,
        }
    }

    /// One that was taken has left this process. The next of its key may be due.
    pub(super) fn gone(&mut self, position: i64) {
        self.taken.remove(&position);
        self.look_at = self.look_at.min(Instant::now() + Duration::from_millis(5));
    }
}

async fn take(store: &Store, lease: Duration, most: usize) -> Vec<Letter> {
    let due = match store.take_due(lease, most).await {
        Ok(due) => due,
        Err(error) => {
            let error = full_text(&error);
            tracing::debug!(
                consumer = store.consumer(),
                error,
                "parked events were not looked for"
            );
            return Vec::new();
        }
    };
    let mut letters = Vec::with_capacity(due.len());
    for letter in due {
        match letter.event() {
            Some(event) => letters.push(Letter {
                position: letter.position,
                content: Arc::new(Content::Event(Arc::new(event))),
            }),
            None => no_event(store, &letter).await,
        }
    }
    letters
}

/// It was changed by hand, or by another program.
async fn no_event(store: &Store, letter: &DeadLetter) {
    let error = "it cannot be retried: what is stored is no event";
    if let Err(error) = store.spoil(letter.position, error).await {
        tracing::debug!(event_id = letter.event_id, %error, "a parked event that is none stays parked");
    }
}
