//! Pausing while nothing can be handled.

use pillarbox_store::Backoff;
use tokio::time::Instant;

/// Whether events are started.
///
/// ```text
///           an environment failure                 the probe succeeds
///   open ──────────────────────────► paused ──────────────────────────► open
///                                     │  ▲
///                                     └──┘ the probe fails: probe again later
/// ```
///
/// The waits grow from one pause to the next until an event has been handled, so that a handler whose own
/// surroundings are away is not called all the time.
#[derive(Debug)]
pub(super) struct Pause {
    backoff: Backoff,
    state: State,
}

#[derive(Debug)]
enum State {
    Open,
    Paused { probe_at: Instant, since: Instant },
}

impl Pause {
    pub(super) fn new() -> Self {
        Self { backoff: Backoff::default(), state: State::Open }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// When to look whether the surroundings are back.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        match self.state {
            State::Open => None,
            State::Paused { probe_at, .. } => Some(probe_at),
        }
    }

    pub(super) fn environment_failed(&mut self, consumer: &str, error: &str) {
        if self.is_open() {
            tracing::warn!(
                consumer,
                error,
                "the consumer pauses, because the database or something else that all \
            events need is away; no attempts are counted until it is back"
            );
            let now = Instant::now();
            self.state = State::Paused { probe_at: now + self.backoff.wait(), since: now };
        }
    }

    pub(super) fn probed(&mut self, consumer: &str, well: bool) {
        if let State::Paused { since, .. } = self.state {
            if well {
                tracing::info!(consumer, paused = ?since.elapsed(), "going on");
                self.state = State::Open;
            } else {
                self.state =
                    State::Paused { probe_at: Instant::now() + self.backoff.wait(), since };
            }
        }
    }

    pub(super) fn handled(&mut self) {
        self.backoff = Backoff::default();
    }
}
