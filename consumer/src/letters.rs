//! Parked events, which the consumer takes from the table and handles as any other.
//!
//! ```text
//!                the last attempt failed           retried by an operator
//!   stream ───────────────────────────────► dead ─────────────────────────► parked
//!      │                                     ▲                                │ ▲
//!      │                                     └──── fails again, to the last ──┤ │
//!      │                                                            handled ──┴─┼─► retried
//!      ├── Order::Strict, and an unresolved event of its key is here ───────────┤
//!      └── its key fails, and many wait behind it: see crowding.rs ─────────────┘
//! ```
//!
//! About once a second, and when those of a key have ended, a consumer takes what is due: of each key the first ones, a
//! *page* that runs in its order. The database sees to the order, and to it that each has one taker at a time: see
//! `due.sql` and `release.sql`. What fails waits in the table for its next attempt, and what was taken behind it is
//! given back, so that no process holds more than it runs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pillarbox_inbox::DeadLetter;
use pillarbox_inbox::source::Store;
use pillarbox_store::full_text;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::config::ConsumerConfig;
use super::incoming::Content;

/// How often parked events are looked for.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long until the next look, while there is more to be looked at.
const NEXT_LOOK: Duration = Duration::from_millis(5);

/// How much longer than its handler an event is taken for.
const MARGIN: Duration = Duration::from_secs(5);

/// How long the events of a page may begin.
const PAGE_TIME: Duration = Duration::from_secs(5);

/// How long giving them back may take.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The parked events that this process has taken.
#[derive(Debug)]
pub(super) struct Letters {
    store: Store,
    lease: Duration,
    most: usize,
    /// By its first event, how many of a page have not left this process.
    pages: HashMap<i64, usize>,
    look_at: Instant,
    rounds: Rounds,
    looking: JoinSet<(Rounds, Vec<Page>)>,
    giving_back: JoinSet<()>,
}

/// How far this process has looked: among the events of the stream, and among those that came from none.
type Rounds = [Round; 2];

#[derive(Clone, Debug)]
struct Round {
    stream: Arc<str>,
    after: (String, i64),
    /// Since when the longest of the keys waits that were seen in this round.
    waiting_since: Option<SystemTime>,
    /// The same of the last whole round.
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

/// The earlier of two times, if there is any.
fn earlier(one: Option<SystemTime>, other: Option<SystemTime>) -> Option<SystemTime> {
    one.into_iter().chain(other).min()
}

/// Parked events that were taken, of one key or one without a key: in their order.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) letters: Vec<Letter>,
    /// Until when they may begin.
    pub(super) until: Instant,
}

/// A parked event, taken.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) position: i64,
    /// Whether it may have been begun before.
    pub(super) again: bool,
    pub(super) content: Arc<Content>,
}

impl Letters {
    pub(super) fn new(store: Store, config: &ConsumerConfig) -> Self {
        Self {
            store,
            lease: config.handler_timeout() + PAGE_TIME + MARGIN,
            most: config.concurrency,
            pages: HashMap::new(),
            look_at: Instant::now(),
            rounds: [Round::new(&config.stream), Round::new("")],
            looking: JoinSet::new(),
            giving_back: JoinSet::new(),
        }
    }

    /// When to look for more; `None` while that is done, or would be of no use.
    pub(super) fn look_at(&self) -> Option<Instant> {
        (self.looking.is_empty() && self.pages.len() < self.most).then_some(self.look_at)
    }

    /// Whether the database is being asked for more.
    pub(super) fn is_looking(&self) -> bool {
        !self.looking.is_empty()
    }

    pub(super) fn look(&mut self) {
        self.look_at = Instant::now() + INTERVAL;
        let (store, lease, most) =
            (self.store.clone(), self.lease, self.most.saturating_sub(self.pages.len()));
        let rounds = self.rounds.clone();
        self.looking.spawn(async move { take(&store, rounds, lease, most).await });
    }

    /// What was found. Pending while nobody looks. Safe to cancel.
    pub(super) async fn found(&mut self) -> Vec<Page> {
        while self.giving_back.try_join_next().is_some() {}
        let Some(found) = self.looking.join_next().await else {
            return std::future::pending().await;
        };
        // A task of ours neither panics nor is cancelled.
        let Ok((rounds, mut found)) = found else { return Vec::new() };
        if !rounds.iter().all(Round::is_whole) {
            self.look_at = self.look_at.min(Instant::now() + NEXT_LOOK);
        }
        self.rounds = rounds;
        found.retain(|page| {
            let new = !self.pages.contains_key(&page.first());
            if new {
                self.pages.insert(page.first(), page.letters.len());
            }
            new
        });
        found
    }

    /// Since when the key waits that waits the longest behind an event that fails, as of the last look at all of them.
    pub(super) fn waiting_since(&self) -> Option<SystemTime> {
        let [stream, none] = &self.rounds;
        earlier(stream.longest, none.longest)
    }

    /// So many of a page have left this process. The next ones of its key may be due.
    pub(super) fn gone(&mut self, page: i64, many: usize) {
        if let Some(left) = self.pages.get_mut(&page) {
            *left = left.saturating_sub(many);
            if *left == 0 {
                self.pages.remove(&page);
                self.look_at = self.look_at.min(Instant::now() + NEXT_LOOK);
            }
        }
    }

    /// These were not begun, and anybody may take them; each with whether it may have been begun before.
    pub(super) fn give_back(&mut self, letters: Vec<(i64, bool)>) {
        if !letters.is_empty() {
            let store = self.store.clone();
            self.giving_back.spawn(async move { give_back(&store, &letters).await });
        }
    }

    /// Waits until all is given back.
    pub(super) async fn given_back(&mut self) {
        while self.giving_back.join_next().await.is_some() {}
    }
}

impl Page {
    /// The position of its first event, by which it is known.
    pub(super) fn first(&self) -> i64 {
        self.letters.first().map_or(0, |letter| letter.position)
    }
}

/// Until their time is over they are nobody's, if this does not succeed.
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

/// The pages that these make.
async fn read(store: &Store, taken: Vec<(DeadLetter, bool)>, until: Instant) -> Vec<Page> {
    let mut pages: Vec<Page> = Vec::new();
    let mut of_key: HashMap<String, usize> = HashMap::new();
    for (letter, again) in taken {
        let Some(event) = letter.event() else {
            no_event(store, &letter).await;
            continue;
        };
        let content = Arc::new(Content::Event(Arc::new(event)));
        let read = Letter { position: letter.position, again, content };
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

/// It was changed by hand, or by another program.
async fn no_event(store: &Store, letter: &DeadLetter) {
    let error = "it cannot be retried, because what is stored is not an event; discard it";
    if let Err(error) = store.spoil(letter.position, error).await {
        tracing::debug!(event_id = letter.event_id, %error, "a parked letter that is not an event could not be marked \
        dead; it stays parked");
    }
}
