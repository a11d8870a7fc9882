//! Parked events, which the consumer takes from the table and handles as any other event.
//!
//! ```text
//!                the last attempt failed           retried by an operator
//!   stream ───────────────────────────────► dead ─────────────────────────► parked
//!      │                                     ▲                                │ ▲
//!      │                                     └──── fails again, to the last ──┤ │
//!      │                                                            handled ──┴─┼─► retried
//!      ├── HandlingOrder::Strict, and an unresolved event of its key is here ───┤
//!      └── its key fails, and many wait behind it: see crowding.rs ─────────────┘
//! ```
//!
//! About once a second, and when those of a key have ended, a consumer takes the events that are due: of each key the
//! first ones, a *page* that runs in its order. The database keeps the order, and gives each event to one process at a
//! time: see `due.sql` and `release.sql`. An event that fails waits in the table for its next attempt, and the consumer
//! gives back what it took behind it, so that no process holds more than it runs. If a batch handler takes them, they
//! run in batches, except for those that may have been begun before. When to look is decided by the scheduler
//! (`pages.rs`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillarbox_inbox::DeadLetter;
use pillarbox_inbox::source::Store;
use pillarbox_store::full_text;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::config::ConsumerConfig;
use super::scheduler::{Content, Letter, Page};

/// How much longer than the handler's time limit an event is taken for.
const MARGIN: Duration = Duration::from_secs(5);

/// How long the events of a page may wait before they begin.
const PAGE_TIME: Duration = Duration::from_secs(5);

/// How long giving events back may take.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes parked events from the table, and gives them back.
#[derive(Debug)]
pub(super) struct ParkedEvents {
    store: Store,
    lease: Duration,
    rounds: Rounds,
    looking: JoinSet<(Rounds, Vec<Page>)>,
    giving_back: JoinSet<()>,
}

/// How far this process has looked: among the events of the stream, and among those that came from no stream.
type Rounds = [Round; 2];

#[derive(Clone, Debug)]
struct Round {
    stream: Arc<str>,
    after: (String, i64),
    /// Since when the key has waited that waits the longest, of those seen in this round.
    waiting_since: Option<SystemTime>,
    /// The same for the last complete round.
    longest: Option<SystemTime>,
}

impl Round {
    fn new(stream: &str) -> Self {
        let (waiting_since, longest) = (None, None);
        Self { stream: stream.into(), after: (String::new(), 0), waiting_since, longest }
    }

    fn is_whole(&self) -> bool {
        self.after.0.is_empty() && self.after.1 == 0
    }

    fn seen(&mut self, after: (String, i64), waiting_since: Option<SystemTime>) {
        self.after = after;
        self.waiting_since = earlier(self.waiting_since, waiting_since);
        if self.is_whole() {
            self.longest = self.waiting_since.take();
        }
    }
}

/// The earlier of two times.
fn earlier(one: Option<SystemTime>, other: Option<SystemTime>) -> Option<SystemTime> {
    one.into_iter().chain(other).min()
}

impl ParkedEvents {
    pub(super) fn new(store: Store, config: &ConsumerConfig) -> Self {
        Self {
            store,
            lease: config.handler_timeout + PAGE_TIME + MARGIN,
            rounds: [Round::new(&config.stream), Round::new("")],
            looking: JoinSet::new(),
            giving_back: JoinSet::new(),
        }
    }

    /// Begins to look, for at most this many pages.
    pub(super) fn look(&mut self, most: usize) {
        let (store, lease, rounds) = (self.store.clone(), self.lease, self.rounds.clone());
        self.looking.spawn(async move { take(&store, rounds, lease, most).await });
    }

    /// What was found, and whether the look came to the end of the table. Pending while nobody looks. Safe to cancel.
    pub(super) async fn found(&mut self) -> (Vec<Page>, bool) {
        while self.giving_back.try_join_next().is_some() {}
        let Some(found) = self.looking.join_next().await else {
            return std::future::pending().await;
        };
        // A task of ours neither panics nor is cancelled.
        let Ok((rounds, found)) = found else { return (Vec::new(), true) };
        let has_seen_all = rounds.iter().all(Round::is_whole);
        self.rounds = rounds;
        (found, has_seen_all)
    }

    /// Since when the key has waited that waits the longest behind a failing event, as of the last complete round.
    pub(super) fn waiting_since(&self) -> Option<SystemTime> {
        let [stream, none] = &self.rounds;
        earlier(stream.longest, none.longest)
    }

    /// Lets any process take these events, which were not begun. Each comes with whether it may have been begun before.
    pub(super) fn give_back(&mut self, letters: Vec<(i64, bool)>) {
        if !letters.is_empty() {
            let store = self.store.clone();
            self.giving_back.spawn(async move { give_back(&store, &letters).await });
        }
    }

    /// Waits until all are given back.
    pub(super) async fn given_back(&mut self) {
        while self.giving_back.join_next().await.is_some() {}
    }
}

/// If this fails, no process can take them until the time for which they were taken is over.
async fn give_back(store: &Store, letters: &[(i64, bool)]) {
    let given = timeout(GIVE_BACK_TIMEOUT, store.give_back_letters(letters)).await;
    if !matches!(given, Ok(Ok(()))) {
        let events = letters.len();
        tracing::debug!(
            consumer = store.consumer(),
            events,
            "parked events were not given back; they can be taken \
        again when their time is over"
        );
    }
}

async fn take(
    store: &Store,
    mut rounds: Rounds,
    lease: Duration,
    most: usize,
) -> (Rounds, Vec<Page>) {
    let mut pages = Vec::new();
    for round in &mut rounds {
        let until = Instant::now() + PAGE_TIME;
        let taken = match store.take_due(&round.stream, lease, most, &round.after).await {
            Ok(taken) => taken,
            Err(error) => {
                let error = full_text(&error);
                tracing::debug!(
                    consumer = store.consumer(),
                    error,
                    "the consumer could not look for parked events; it tries again"
                );
                break;
            }
        };
        pages.extend(read(store, taken.letters, until).await);
        round.seen(taken.after, taken.waiting_since);
    }
    (rounds, pages)
}

/// Puts the events of each key on a page.
async fn read(store: &Store, taken: Vec<(DeadLetter, bool)>, until: Instant) -> Vec<Page> {
    let mut pages: Vec<Page> = Vec::new();
    let mut of_key: HashMap<String, usize> = HashMap::new();
    for (letter, again) in taken {
        let Some(event) = letter.event() else {
            no_event(store, &letter).await;
            continue;
        };
        let content = Arc::new(Content::Event(Arc::new(event)));
        let read = Letter { position: letter.position, again, in_batches: false, content };
        let page = match letter.key {
            Some(key) => *of_key.entry(key).or_insert(pages.len()),
            None => pages.len(),
        };
        match pages.get_mut(page) {
            Some(page) => page.letters.push(read),
            None => pages.push(Page { letters: vec![read], until }),
        }
    }
    pages
}

/// The letter was changed by hand or by another program.
async fn no_event(store: &Store, letter: &DeadLetter) {
    let error = "it cannot be retried, because what is stored is not an event; discard it";
    if let Err(error) = store.spoil(letter.position, error).await {
        tracing::debug!(event_id = letter.event_id, %error, "a parked letter that is not an event could not be marked \
        dead; it stays parked");
    }
}
