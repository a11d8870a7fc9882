//! Events that may kill the process, by a stack overflow, an abort, or all the memory there is.
//!
//! Such an event comes again and again and takes every other one with it, so it has to be found. An event that was
//! merely in work when the machine lost power, or when the process died of a leak, of another task or of another event,
//! must not be taken for it, also if that happens again and again. The broker's count of deliveries cannot tell: it also
//! grows with outages, lost acknowledgements and redeliveries of any kind, and starts anew with a reset. So:
//!
//! - An event that is delivered for the first time runs without ado, and costs nothing.
//! - One that was delivered before is *marked* as begun in the database, and the mark goes with its end,
//!   whichever that is: success, failure, a clean stop. A mark that is found belongs to a process that died.
//! - An event that is found marked runs *alone*. If it is innocent, it ends, and the mark is gone.
//! - One that is found marked from a run alone is *held back*, and so is every other suspect: the control. If the process
//!   dies in that time, it dies for reasons of its own: the event is a suspect as it was before its run alone, and it is
//!   noted for the consumer that its processes die by themselves.
//! - If the process lives, the event is given up. If the consumer's processes are known to die by themselves, it runs
//!   alone once more instead, and only a second death alone, and a second control, will do.
//!
//! ```text
//!   delivered ─ died ─► again: 1 ─ died ─► alone: 2 ─ died ─► held back: 3 ─ lived ─► dead letter
//!                          ▲                                   │   │
//!                          ├────────────── died ───────────────┘   │ lived, where own deaths are known
//!                          │                                       ▼
//!                          └─ died ─ held back: 5 ◄─ died ─ alone: 4      5 ─ lived ─► dead letter
//!   in work, any of them ─ ended ─► as any other event
//! ```
//!
//! A process that dies at random, so often that an event which runs for a time *t* is likely to be hit, is unlikely to
//! live for several times *t* right after that: so the event is held back for [several times](CONTROL) as long as it had
//! been in work. A killer costs three processes, one more for each death of another cause while it is held back, and two
//! more where own deaths are known. Until its end only its key waits; nothing else that may kill runs meanwhile.
//!
//! A consumer whose future is dropped counts as one that died; one that is stopped by its token does not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pillarbox_event::{Identity, RawEvent};
use tokio::time::{Instant, timeout};

use crate::store::{Marked, Store};

/// How long a clean stop may take to remove the marks of what it dropped.
const UNMARK_TIMEOUT: Duration = Duration::from_secs(2);

/// How many times as long as it was in work an event is held back.
const CONTROL: u32 = 5;

/// How long it is held back at the least.
const SHORTEST_CONTROL: Duration = Duration::from_secs(10);

/// The events that may kill the process: those that were delivered before. Clones share the marks that this process has
/// set.
#[derive(Clone, Debug)]
pub struct Killers {
    store: Store,
    marked: Arc<Mutex<HashMap<Identity, Mark>>>,
    /// How long an event can be in work.
    longest: Duration,
}

/// What this process has marked an event as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Begun,
    HeldBack {
        until: Instant,
        /// Whether the process's living that long is the last piece of evidence.
        suffices: bool,
    },
}

/// How an event that was delivered before is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// As any other.
    Run,
    /// With nothing beside it.
    RunAlone,
    /// Not yet: ask again after this long.
    Wait(Duration),
    /// Not at all: it kills the process, and has killed so many.
    Kills(u32),
}

/// What follows from what the database knew of an event that this process has just marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Begun,
    Alone,
    HeldBack { suffices: bool },
}

/// The rule of the [module](self): `step` as it was found.
fn found(step: u32, alone: bool, own_deaths: bool) -> Found {
    match step {
        0 => Found::Begun,
        // 3 is this process's own then: it has lived without the event.
        1 | 3 if alone => Found::Begun,
        2 => Found::HeldBack { suffices: !own_deaths },
        4 => Found::HeldBack { suffices: true },
        _ => Found::Alone,
    }
}

/// For how long an event is held back that was in work for so long.
fn control(lasted: Duration, longest: Duration) -> Duration {
    // What is longer is the time without any process.
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
            Some(Mark::Begun) => return Ok(Ruling::Run),
            Some(Mark::HeldBack { until, suffices }) => {
                let left = until.saturating_duration_since(Instant::now());
                match suffices {
                    _ if !left.is_zero() => return Ok(Ruling::Wait(left)),
                    true => return Ok(Ruling::Kills(3)),
                    // Others may be held back meanwhile.
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
            // The inbox will say so; it also waits for whoever makes a dead letter an event again.
            Marked::Handled => return Ok(Ruling::Run),
            Marked::Started { step, lasted, own_deaths } => (step, lasted, own_deaths),
        };
        match found(step, alone, own_deaths) {
            Found::Begun => {
                self.marked().insert(identity, Mark::Begun);
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
                self.marked().insert(identity, Mark::HeldBack { until, suffices });
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

    /// The event has ended, and the database knows.
    pub fn ended(&self, event: &Identity) {
        self.marked().remove(event);
    }

    /// The event has ended, and the database is to be told. If that fails, the mark is still this process's
    /// own, and found so by [`begin`](Self::begin).
    pub async fn unmark(&self, event: &Identity) {
        if self.marked().contains_key(event)
            && self.store.unmark(&[event.to_string()]).await.is_ok()
        {
            self.ended(event);
        }
    }

    /// Nothing is in work any more.
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

    fn marked(&self) -> MutexGuard<'_, HashMap<Identity, Mark>> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long until no event is held back any more, if any is.
fn remaining_control(marked: &HashMap<Identity, Mark>) -> Option<Duration> {
    let until = marked.values().filter_map(|mark| match mark {
        Mark::HeldBack { until, .. } => Some(*until),
        Mark::Begun => None,
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
