//! Decides which of a consumer's failures get a line in the log: changes of state, and of many alike the first few and
//! a count.
//!
//! A line for each failed attempt of each event would be megabytes when a provider is away or a producer sends
//! nonsense. So an event gets a line when it begins to fail, when it is given up, and when it is handled after all. Of
//! each of these there are at most [`MOST_LINES`] within a minute. The rest is counted, and the counts are logged every
//! half minute. The metrics count everything, and the level `debug` shows every failure.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillarbox_event::Identity;
use tokio::time::Instant;

/// How many lines of a kind are written within a [`WINDOW`].
const MOST_LINES: u32 = 10;

const WINDOW: Duration = Duration::from_secs(60);

/// How often the counts of what got no line are logged.
const SUMMARY_EVERY: Duration = Duration::from_secs(30);

/// How many failing events are remembered. If one is forgotten, the log does not say that it was handled after all.
const MOST_REMEMBERED: usize = 1_000;

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JournalChange {
    /// An event fails for the first time.
    Fails,
    /// An event is given up.
    Letter,
    /// What became of an event could not be written.
    Unwritten,
}

/// How many changes got no line of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Untold {
    pub(super) fails: u64,
    pub(super) letters: u64,
    pub(super) unwritten: u64,
}

/// See the [module](self). Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Journal(Arc<Mutex<JournalPages>>);

#[derive(Debug)]
struct JournalPages {
    window: Instant,
    lines: [u32; 3],
    untold: Untold,
    summary_at: Instant,
    failing: HashSet<Identity>,
}

impl Journal {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(JournalPages {
            window: now,
            lines: [0; 3],
            untold: Untold::default(),
            summary_at: now,
            failing: HashSet::new(),
        })))
    }

    /// Whether this change gets a line of its own.
    pub(super) fn tells(&self, change: JournalChange, event: Option<&Identity>) -> bool {
        self.tells_at(Instant::now(), change, event)
    }

    fn tells_at(&self, now: Instant, change: JournalChange, event: Option<&Identity>) -> bool {
        let mut pages = self.pages();
        if now >= pages.window + WINDOW {
            pages.window = now;
            pages.lines = [0; 3];
        }
        let which = change as usize;
        let tells = pages.lines[which] < MOST_LINES;
        if tells {
            pages.lines[which] += 1;
        } else {
            match change {
                JournalChange::Fails => pages.untold.fails += 1,
                JournalChange::Letter => pages.untold.letters += 1,
                JournalChange::Unwritten => pages.untold.unwritten += 1,
            }
        }
        if let Some(event) = event {
            match change {
                JournalChange::Fails if tells && pages.failing.len() < MOST_REMEMBERED => {
                    pages.failing.insert(event.clone());
                }
                JournalChange::Letter => drop(pages.failing.remove(event)),
                _ => {}
            }
        }
        tells
    }

    /// Whether the log should say that this event was handled, because it has said that the event fails.
    pub(super) fn tells_recovery(&self, event: &Identity) -> bool {
        self.pages().failing.remove(event)
    }

    /// The counts of what got no line, if it is time to log them, or if this is the last call (`at_last`).
    pub(super) fn summary(&self, at_last: bool) -> Option<Untold> {
        self.summary_at(Instant::now(), at_last)
    }

    fn summary_at(&self, now: Instant, at_last: bool) -> Option<Untold> {
        let mut pages = self.pages();
        if pages.untold == Untold::default() || !(at_last || now >= pages.summary_at) {
            return None;
        }
        pages.summary_at = now + SUMMARY_EVERY;
        Some(std::mem::take(&mut pages.untold))
    }

    fn pages(&self) -> MutexGuard<'_, JournalPages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_changes_the_first_are_told_and_the_others_counted() {
        let (journal, mut now) = (Journal::new(), Instant::now());
        let letter = |now| journal.tells_at(now, JournalChange::Letter, None);
        assert_eq!((0..3_000).filter(|_| letter(now)).count(), 10);
        assert!(journal.tells_at(now, JournalChange::Fails, None), "each kind has its own lines");
        let untold = Untold { letters: 2_990, ..Untold::default() };
        assert_eq!(journal.summary_at(now, false), Some(untold));
        assert_eq!(journal.summary_at(now, true), None, "told");
        assert!(!letter(now));
        assert_eq!(journal.summary_at(now, false), None, "not so soon");
        now += SUMMARY_EVERY;
        assert_eq!(journal.summary_at(now, false).unwrap().letters, 1);
        assert!(letter(now + WINDOW));
    }

    #[test]
    fn a_recovery_is_told_of_what_was_said_to_fail() {
        let journal = Journal::new();
        let event = |id: &str| {
            let event = pillarbox_event::RawEvent::builder("order.placed", "orders.placed");
            event.id(id).build().unwrap().identity()
        };
        assert!(!journal.tells_recovery(&event("1")));
        assert!(journal.tells(JournalChange::Fails, Some(&event("1"))));
        assert!(journal.tells_recovery(&event("1")));
        assert!(!journal.tells_recovery(&event("1")), "once");
        assert!(journal.tells(JournalChange::Fails, Some(&event("2"))));
        assert!(journal.tells(JournalChange::Letter, Some(&event("2"))));
        assert!(!journal.tells_recovery(&event("2")), "it was given up");
    }
}
