//! When to ask whether the database is reachable: after a while in which nothing has ended.
//!
//! A lost database shows late by itself. A pool goes on connecting until its `acquire_timeout` is over (30 s by
//! default), and a handler waits for an answer until its own time is up. A busy pool and a slow handler look the same
//! meanwhile. So when the consumer has waited for a second and nothing has ended, it asks the database over a
//! connection of its own, not one of the pool's. If the database does not answer, the consumer pauses. If it answers,
//! the consumer asks again after two seconds, then four, then every five.
//!
//! ```text
//!            something begins        a second               no answer
//!   (none) ───────────────────► waiting ───────────► asking ───────────► the consumer pauses
//!      ▲                         │ ▲  ▲                │
//!      └── nothing is waited for ┘ │  └────────────────┘ an answer: ask again, later
//!                                  └ something ends
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// How long nothing may end before the database is asked.
const FIRST: Duration = Duration::from_secs(1);

/// The longest time between two questions.
const LONGEST: Duration = Duration::from_secs(5);

/// See the [module](self). The caller knows whether anything is waited for.
#[derive(Debug)]
pub(super) struct Silence {
    state: State,
    wait: Duration,
}

#[derive(Debug)]
enum State {
    Waiting { ask_at: Instant },
    Asking,
}

impl Silence {
    pub(super) fn new(now: Instant) -> Self {
        Self { state: State::Waiting { ask_at: now + FIRST }, wait: FIRST }
    }

    /// Something has ended, or has begun when nothing was waited for.
    pub(super) fn broken(&mut self, now: Instant) {
        self.wait = FIRST;
        if let State::Waiting { ask_at } = &mut self.state {
            *ask_at = now + FIRST;
        }
    }

    /// When to ask, if anything is still waited for. `None` while the database is being asked.
    pub(super) fn ask_at(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { ask_at } => Some(ask_at),
            State::Asking => None,
        }
    }

    /// The database is being asked.
    pub(super) fn asking(&mut self) {
        self.wait = (2 * self.wait).min(LONGEST);
        self.state = State::Asking;
    }

    /// The question has ended.
    pub(super) fn asked(&mut self, now: Instant) {
        self.state = State::Waiting { ask_at: now + self.wait };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_is_asked_after_a_second_of_silence_and_then_less_and_less_often() {
        let mut now = Instant::now();
        let mut silence = Silence::new(now);
        let mut waits = Vec::new();
        for _ in 0..5 {
            let at = silence.ask_at().unwrap();
            waits.push((at - now).as_secs());
            now = at;
            silence.asking();
            assert_eq!(silence.ask_at(), None, "one question at a time");
            silence.asked(now);
        }
        assert_eq!(waits, [1, 2, 4, 5, 5]);
    }

    #[test]
    fn what_ends_breaks_the_silence_also_while_the_database_is_asked() {
        let now = Instant::now();
        let mut silence = Silence::new(now);
        silence.asking();
        silence.broken(now);
        silence.asked(now);
        assert_eq!(silence.ask_at(), Some(now + FIRST));
        silence.broken(now + FIRST);
        assert_eq!(silence.ask_at(), Some(now + 2 * FIRST));
    }
}
