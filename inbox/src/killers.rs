//! Finds events that kill the process, by a stack overflow, an abort, or by using all memory.
//!
//! Such an event comes again and again, and each time it ends the handling of all other events, so it must be found. An
//! event must not be taken for a killer because it was in progress when the machine lost power, or when the process
//! died of a leak, of another task or of another event, even if that happens repeatedly. The broker's count of
//! deliveries does not help: it also grows with outages, lost acknowledgements and redeliveries of any kind, and a
//! reset clears it. So:
//!
//! - An event that is delivered for the first time simply runs, at no extra cost.
//! - An event that was delivered before, or may have been, is *marked* as begun in the database. The mark is removed
//!   when the event ends, in success, failure or a clean stop. So a mark that is found belongs to a process that died.
//! - An event that is found marked runs *alone*. If it is innocent, it ends, and the mark is removed.
//! - An event that is found marked from a run alone is *held back*, and so is every other suspect. This is the control.
//!   If the process dies in that time, it died for reasons of its own: the event is suspected as before its run alone,
//!   and the database records that the consumer's processes die by themselves.
//! - If the process survives, the event is given up. If the consumer's processes are known to die by themselves, the
//!   event instead runs alone once more, and is given up only after a second death alone and a second control.
//! ```text
//!   delivered ─ died ─► again: 1 ─ died ─► alone: 2 ─ died ─► held back: 3 ─ lived ─► dead letter
//!                          ▲                                   │   │
//!                          ├────────────── died ───────────────┘   │ lived, where own deaths are known
//!                          │                                       ▼
//!                          └─ died ─ held back: 5 ◄─ died ─ alone: 4      5 ─ lived ─► dead letter
//!   in progress, any of them ─ ended ─► as any other event
//! ```
//!
//! Suppose that a process dies at random, so often that an event that runs for a time *t* is likely to be hit. Such a
//! process is unlikely to survive several times *t* right after that. So the event is held back for [several
//! times](CONTROL) as long as it had been in progress. Finding a killer costs three processes, one more for each death
//! of another cause during the control, and two more if processes are known to die by themselves. Until then only the
//! killer's key waits, and nothing else that may kill runs.
//!
//! A reset of the durable consumer makes the broker forget what it has delivered. So after a reset by another process,
//! as many messages behind the ack floor count as delivered before as a process may hold. A killer can be further
//! behind it if an event that is in progress for long, or is tried again and again, keeps the ack floor from moving
//! while later events are handled. Such a killer runs without a mark after each reset, until the ack floor has moved.
//!
//! A consumer whose future is dropped counts as one that died. A consumer that is stopped by its token does not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillarbox_event::{Identity, RawEvent};
use tokio::time::{Instant, timeout};

use crate::store::{Marked, Store};

/// The time limit for removing the marks of dropped events in a clean stop.
const UNMARK_TIMEOUT: Duration = Duration::from_secs(2);

/// An event is held back for this many times as long as it was in progress.
const CONTROL: u32 = 5;

/// The shortest time for which an event is held back.
const SHORTEST_CONTROL: Duration = Duration::from_secs(10);

/// The events that may kill the process, which are those that were delivered before. All clones share the marks that
/// this process has set.
#[derive(Clone, Debug)]
pub struct Killers {
    store: Store,
    marked: Arc<Mutex<HashMap<Identity, EventMark>>>,
    /// The longest time that an event can be in progress.
    longest: Duration,
}

/// How this process has marked an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventMark {
    Begun,
    HeldBack {
        until: Instant,
        /// Whether the event is given up if the process survives that long.
        suffices: bool,
    },
}

/// How to continue with an event that was delivered before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// Run it as any other event.
    Run,
    /// Run it with no other event beside it.
    RunAlone,
    /// Do not run it yet. Ask again after this time.
    Wait(Duration),
    /// Do not run it. It kills the process, and has killed this many.
    Kills(u32),
}

/// What follows from what the database knew of an event that this process has just marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Begun,
    Alone,
    HeldBack { suffices: bool },
}

/// Applies the rule of the [module](self) to the step that was found.
fn found(step: u32, alone: bool, own_deaths: bool) -> Found {
    match step {
        0 => Found::Begun,
        // Then step 3 is this process's own, and the process survived without the event.
        1 | 3 if alone => Found::Begun,
        2 => Found::HeldBack { suffices: !own_deaths },
        4 => Found::HeldBack { suffices: true },
        _ => Found::Alone,
    }
}

/// How long an event that was in progress for this long is held back.
fn control(lasted: Duration, longest: Duration) -> Duration {
    // A longer time includes time without any process.
    SHORTEST_CONTROL.max(CONTROL * lasted.min(longest))
}

impl Killers {
    /// `longest`: how long a handler may take.
    pub fn new(store: Store, longest: Duration) -> Self {
        Self { store, marked: Arc::default(), longest }
    }

    /// Marks an event as begun. `parked`: it was taken from the dead letters.
    pub async fn begin(
        &self,
        event: &RawEvent,
        alone: bool,
        parked: bool,
    ) -> Result<Ruling, sqlx::Error> {
        let identity = event.identity();
        let (mark, control) = {
            let marked = self.marked();
            (marked.get(&identity).copied(), remaining_control(&marked))
        };
        match mark {
            Some(EventMark::Begun) => return Ok(Ruling::Run),
            Some(EventMark::HeldBack { until, suffices }) => {
                let left = until.saturating_duration_since(Instant::now());
                match suffices {
                    _ if !left.is_zero() => return Ok(Ruling::Wait(left)),
                    true => return Ok(Ruling::Kills(3)),
                    // Other events may be held back meanwhile.
                    false if control.is_some() => {
                        return Ok(control.map_or(Ruling::RunAlone, Ruling::Wait));
                    }
                    false if !alone => return Ok(Ruling::RunAlone),
                    false => {}
                }
            }
            None => {}
        }
        if let Some(wait) = control.filter(|_| alone) {
            return Ok(Ruling::Wait(wait));
        }
        let (step, lasted, own_deaths) = match self.store.mark(event, alone, parked).await? {
            // The inbox itself skips the event. It also waits for a transaction that releases its dead letter.
            Marked::Handled => return Ok(Ruling::Run),
            Marked::Started { step, lasted, own_deaths } => (step, lasted, own_deaths),
        };
        match found(step, alone, own_deaths) {
            Found::Begun => {
                self.marked().insert(identity, EventMark::Begun);
                Ok(Ruling::Run)
            }
            Found::Alone => {
                if matches!(step, 3 | 5) {
                    tracing::warn!(
                        consumer = self.store.consumer(),
                        event_id = event.id().as_str(),
                        "a process died while this event, which was suspected of killing it, was held back: it died \
                         for reasons of its own; look into these"
                    );
                }
                Ok(control.map_or(Ruling::RunAlone, Ruling::Wait))
            }
            Found::HeldBack { suffices } => {
                let control = self::control(lasted, self.longest);
                let until = Instant::now() + control;
                self.marked().insert(identity, EventMark::HeldBack { until, suffices });
                tracing::warn!(
                    consumer = self.store.consumer(),
                    event_id = event.id().as_str(),
                    ?control,
                    "a process died while it handled this event and nothing else: the event is held back, to see \
                     whether this process lives without it"
                );
                Ok(Ruling::Wait(control))
            }
        }
    }

    /// Records that the event has ended, and that the database knows it.
    pub fn ended(&self, event: &Identity) {
        self.marked().remove(event);
    }

    /// Records that the event has ended, and removes its mark in the database. If that fails, the mark remains this
    /// process's own, and [`begin`](Self::begin) recognises it.
    pub async fn unmark(&self, event: &Identity) {
        if self.marked().contains_key(event)
            && self.store.unmark(&[event.to_string()]).await.is_ok()
        {
            self.ended(event);
        }
    }

    /// Records that no event is in progress any more.
    pub async fn unmark_all(&self) {
        let ids: Vec<String> =
            std::mem::take(&mut *self.marked()).keys().map(Identity::to_string).collect();
        if !ids.is_empty() {
            let unmarked = timeout(UNMARK_TIMEOUT, self.store.unmark(&ids)).await;
            if !matches!(unmarked, Ok(Ok(()))) {
                tracing::debug!("marks were left behind by a stop");
            }
        }
    }

    fn marked(&self) -> MutexGuard<'_, HashMap<Identity, EventMark>> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long until no event is held back any more. `None`: none is held back.
fn remaining_control(marked: &HashMap<Identity, EventMark>) -> Option<Duration> {
    let until = marked.values().filter_map(|mark| match mark {
        EventMark::HeldBack { until, .. } => Some(*until),
        EventMark::Begun => None,
    });
    let left = until.max()?.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_death_alone_and_a_life_without_it_suffice_unless_processes_die_by_themselves() {
        assert_eq!(found(0, false, false), Found::Begun);
        assert_eq!(found(1, false, false), Found::Alone);
        assert_eq!(found(1, true, false), Found::Begun, "alone");
        assert_eq!(found(2, false, false), Found::HeldBack { suffices: true });
        assert_eq!(found(2, false, true), Found::HeldBack { suffices: false });
        assert_eq!(found(3, true, true), Found::Begun, "alone once more");
        assert_eq!(found(4, false, true), Found::HeldBack { suffices: true });
    }

    #[test]
    fn a_death_while_an_event_is_held_back_is_not_its_own() {
        for (step, own_deaths) in [(3, false), (3, true), (5, false), (5, true)] {
            assert_eq!(found(step, false, own_deaths), Found::Alone);
        }
    }

    #[test]
    fn what_ran_long_is_held_back_long_and_not_for_the_time_without_a_process() {
        let longest = Duration::from_secs(30);
        assert_eq!(control(Duration::from_millis(5), longest), SHORTEST_CONTROL);
        assert_eq!(control(Duration::from_secs(6), longest), Duration::from_secs(30));
        assert_eq!(control(Duration::from_secs(86_400), longest), Duration::from_secs(150));
    }
}
