//! What operators allow: pauses, and how many events may begin.
//!
//! Nothing begins until it is known what is paused.
//!
//! **The rate** is shared by all processes of a consumer, over one row of the database. A process that has events to
//! begin asks for a *piece*: the row's `next_at` moves forward by the time that the rate needs for that many events,
//! and the process may begin them once their time has come (`take_rate.sql`).
//!
//! ```text
//!                 a tenth of a second, or one event
//!   ──┬─────────┬─────────┬─────────┬─────────► time
//!     │ A       │ B       │ A       │ next_at: the next piece begins here
//!     └─────────┴─────────┴─────────┘
//! ```
//!
//! - Pieces do not overlap. So in any period the processes together begin at most what the rate allows, and one piece
//!   more for each process.
//! - A process asks again only when its piece is used up. So processes that have work take turns, and one without work
//!   takes nothing.
//! - A piece is lost if it is not used within a second after its time. So a process that was suspended does not catch
//!   up at once.
//!
//! Alternatives: a fixed share of the rate for each process wastes the share of those that have nothing to do; a count
//! of the events in a table needs a statement for each event.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

/// How long one piece of the rate lasts, unless one event takes longer.
const PIECE: f64 = 0.1;

/// How long a piece may still be used after its time.
const GRACE: Duration = Duration::from_secs(1);

/// How long until the next question after one that failed.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Waits are cut to this, whatever the database answers.
const LONGEST: Duration = Duration::from_secs(86_400);

/// What operators have paused and limited, for one consumer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Controls {
    /// Whether the whole consumer is paused.
    pub(crate) paused: bool,
    /// The types of events that are paused.
    pub(crate) paused_types: BTreeSet<String>,
    /// How many events may begin per second, over all processes.
    pub(crate) per_second: Option<f64>,
}

/// A piece of the rate: this many events may begin, this long from now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) events: u32,
    pub(crate) wait: Duration,
    /// The rate of which it is a piece.
    pub(crate) per_second: f64,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Control {
    controls: Option<Controls>,
    piece: Option<Granted>,
    asking: bool,
    ask_at: Instant,
}

#[derive(Debug)]
struct Granted {
    left: usize,
    from: Instant,
    until: Instant,
}

impl Control {
    /// Everything is allowed.
    pub(super) fn new(now: Instant) -> Self {
        Self { controls: Some(Controls::default()), piece: None, asking: false, ask_at: now }
    }

    /// Nothing is known yet.
    pub(super) fn forget(&mut self) {
        self.controls = None;
    }

    pub(super) fn set(&mut self, controls: Controls, now: Instant) {
        let before = self.controls.as_ref().and_then(|controls| controls.per_second);
        if before != controls.per_second {
            // A piece of a slow rate may be far ahead.
            self.piece = None;
            self.ask_at = now;
        }
        self.controls = Some(controls);
    }

    /// Whether events may begin, as far as pauses are concerned.
    pub(super) fn is_open(&self) -> bool {
        self.controls.as_ref().is_some_and(|controls| !controls.paused)
    }

    pub(super) fn is_paused(&self, event_type: &str) -> bool {
        self.controls.as_ref().is_some_and(|controls| controls.paused_types.contains(event_type))
    }

    fn rate(&self) -> Option<f64> {
        self.controls.as_ref().and_then(|controls| controls.per_second)
    }

    /// How many events may begin now.
    pub(super) fn room(&self, now: Instant) -> usize {
        match (self.rate(), &self.piece) {
            (None, _) => usize::MAX,
            (Some(_), Some(piece)) if piece.from <= now && now < piece.until => piece.left,
            (Some(_), _) => 0,
        }
    }

    /// This many events begin.
    pub(super) fn spend(&mut self, events: usize) {
        if let Some(piece) = &mut self.piece {
            piece.left = piece.left.saturating_sub(events);
        }
    }

    /// Events wait for the rate. Returns how many to ask for, if it is time to ask.
    pub(super) fn ask(&mut self, now: Instant) -> Option<u32> {
        let per_second = self.rate()?;
        let is_usable =
            self.piece.as_ref().is_some_and(|piece| piece.left > 0 && now < piece.until);
        if is_usable || self.asking || now < self.ask_at {
            return None;
        }
        self.asking = true;
        Some((per_second * PIECE).clamp(1.0, 100_000.0) as u32)
    }

    /// The answer to a question. `None`: the database did not answer, or there is no limit any more.
    pub(super) fn granted(&mut self, piece: Option<Piece>, now: Instant) {
        self.asking = false;
        let piece = piece.filter(|piece| Some(piece.per_second) == self.rate());
        let Some(Piece { events, wait, per_second }) = piece else {
            self.ask_at = now + ASK_AGAIN;
            return;
        };
        let from = now + wait.min(LONGEST);
        let lasts = Duration::try_from_secs_f64(f64::from(events) / per_second);
        let until = from + lasts.unwrap_or(LONGEST).min(LONGEST) + GRACE;
        self.piece = Some(Granted { left: events as usize, from, until });
    }

    /// When to try again to begin events that wait for the rate.
    pub(super) fn wake_at(&self, now: Instant) -> Option<Instant> {
        self.rate()?;
        match &self.piece {
            _ if self.asking => None,
            Some(piece) if piece.left > 0 && now < piece.until => Some(piece.from),
            _ => Some(self.ask_at),
        }
        // What is due already was tried before the wait began.
        .filter(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(per_second: f64) -> Controls {
        Controls { per_second: Some(per_second), ..Controls::default() }
    }

    #[test]
    fn nothing_begins_before_it_is_known_what_is_paused() {
        let now = Instant::now();
        let mut control = Control::new(now);
        assert!(control.is_open());
        control.forget();
        assert!(!control.is_open());
        control.set(Controls { paused: true, ..Controls::default() }, now);
        assert!(!control.is_open());
        let types = BTreeSet::from(["order.placed".to_owned()]);
        control.set(Controls { paused_types: types, ..Controls::default() }, now);
        assert!(control.is_open() && control.is_paused("order.placed"));
        assert!(!control.is_paused("order.paid"));
        assert_eq!((control.room(now), control.ask(now)), (usize::MAX, None), "no limit");
    }

    #[test]
    fn a_piece_of_the_rate_is_used_in_its_time_and_lost_after_it() {
        let now = Instant::now();
        let mut control = Control::new(now);
        control.set(limited(50.0), now);
        assert_eq!(control.room(now), 0);
        assert_eq!(control.ask(now), Some(5), "a tenth of a second");
        assert_eq!(control.ask(now), None, "one question at a time");
        let wait = Duration::from_millis(200);
        control.granted(Some(Piece { events: 5, wait, per_second: 50.0 }), now);
        assert_eq!((control.room(now), control.wake_at(now)), (0, Some(now + wait)));
        let later = now + wait;
        assert_eq!(control.room(later), 5);
        control.spend(3);
        assert_eq!((control.room(later), control.ask(later)), (2, None));
        control.spend(2);
        assert_eq!((control.room(later), control.ask(later)), (0, Some(5)));
        control.granted(Some(Piece { events: 5, wait: Duration::ZERO, per_second: 50.0 }), later);
        let slept = later + Duration::from_secs(2);
        assert_eq!((control.room(slept), control.ask(slept)), (0, Some(5)), "it does not catch up");
    }

    #[test]
    fn a_slow_rate_gives_one_event_and_a_new_rate_counts_at_once() {
        let now = Instant::now();
        let mut control = Control::new(now);
        control.set(limited(0.1), now);
        assert_eq!(control.ask(now), Some(1));
        let wait = Duration::from_secs(10);
        control.granted(Some(Piece { events: 1, wait, per_second: 0.1 }), now);
        control.set(limited(100.0), now);
        assert_eq!(control.ask(now), Some(10));
        control.granted(Some(Piece { events: 1, wait, per_second: 0.1 }), now);
        assert_eq!(control.room(now), 0, "an answer for the earlier rate");
        assert_eq!(control.wake_at(now), Some(now + ASK_AGAIN));
    }
}
