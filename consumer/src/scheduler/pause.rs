//! Pausing while nothing can be handled.

use std::time::Duration;

use pillarbox_store::Backoff;
use tokio::time::Instant;

/// Whether events are started.
///
/// ```text
///           an environment failure           it is time            the probe succeeds
///   open ──────────────────────────► paused ───────────► probing ──────────────────────► open
///                                       ▲                   │
///                                       └───────────────────┘ the probe fails
/// ```
///
/// The waits grow from one pause to the next until an event has been handled. So a handler that reports an outage
/// of something that the probe does not see is not called all the time.
#[derive(Debug)]
pub(super) struct Pause {
    backoff: Backoff,
    state: State,
}

#[derive(Debug)]
enum State {
    Open,
    Paused { since: Instant, probe_at: Instant },
    Probing { since: Instant },
}

impl Pause {
    pub(super) fn new() -> Self {
        Self { backoff: Backoff::default(), state: State::Open }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// When to probe whether what all events need is back. `None` while that is not needed, or is being done.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Paused { probe_at, .. } => Some(probe_at),
            State::Open | State::Probing { .. } => None,
        }
    }

    /// Pauses. Returns whether this began a pause.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let begins = self.is_open();
        if begins {
            self.state = State::Paused { since: now, probe_at: now + self.backoff.wait() };
        }
        begins
    }

    /// The probe is under way.
    pub(super) fn probing(&mut self) {
        if let State::Paused { since, .. } = self.state {
            self.state = State::Probing { since };
        }
    }

    /// The probe has ended. Returns how long the pause lasted, if this ended it.
    pub(super) fn probed(&mut self, well: bool, now: Instant) -> Option<Duration> {
        let (State::Paused { since, .. } | State::Probing { since }) = self.state else {
            return None;
        };
        if well {
            self.state = State::Open;
            return Some(now.saturating_duration_since(since));
        }
        self.state = State::Paused { since, probe_at: now + self.backoff.wait() };
        None
    }

    /// An event was handled, so the next pause is short again.
    pub(super) fn handled(&mut self) {
        self.backoff = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(5);

    #[test]
    fn a_pause_ends_with_the_first_probe_that_succeeds() {
        let now = Instant::now();
        let mut pause = Pause::new();
        assert_eq!((pause.is_open(), pause.probe_at()), (true, None));
        assert!(pause.begin(now));
        assert!(!pause.begin(now), "it has begun already");
        assert!(pause.probe_at().unwrap() > now);
        pause.probing();
        assert_eq!((pause.is_open(), pause.probe_at()), (false, None), "one probe at a time");
        assert!(!pause.begin(now), "a failure during the probe");
        let later = now + Duration::from_secs(1);
        assert_eq!(pause.probed(false, later), None);
        assert!(pause.probe_at().unwrap() > later);
        pause.probing();
        assert_eq!(pause.probed(true, later + LONGEST), Some(LONGEST + Duration::from_secs(1)));
        assert_eq!((pause.is_open(), pause.probe_at()), (true, None));
        assert_eq!(pause.probed(true, later), None, "no pause, no end");
    }

    #[test]
    fn pauses_grow_until_an_event_is_handled() {
        let now = Instant::now();
        let mut pause = Pause::new();
        let mut wait = |handled: bool| {
            if handled {
                pause.handled();
            }
            pause.begin(now);
            let wait = pause.probe_at().unwrap() - now;
            pause.probing();
            pause.probed(true, now);
            wait
        };
        let first = wait(false);
        let tenth = (0..9).map(|_| wait(false)).last().unwrap();
        assert!(first < tenth && tenth <= LONGEST, "{first:?} {tenth:?}");
        assert!(wait(true) < tenth);
    }
}
