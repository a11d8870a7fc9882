//! Skipping stretches of events that are handled already.
//!
//! After a stream was made anew, or a durable was deleted, an hour's events may come again. Each of them would begin a
//! transaction, only to find its row in the inbox. So after a [few](ENOUGH) events in a row that were handled already,
//! the consumer *looks up* what waits: one statement asks for the rows of all of it, before any handler's transaction
//! begins. Events that have their row leave at once. The others run as usual, and are not looked up again.
//!
//! ```text
//!               enough in a row were handled already
//!   as they come ─────────────────────────────────────► looked up
//!        ▲                                                 │
//!        └─── lookups in a row found mostly new events ────┘
//! ```
//!
//! - A consumer with nothing to skip asks nothing.
//! - A few new events between those that come again [do not end it](ENOUGH_NEW). Otherwise each small lookup of new
//!   events would let everything that is held run.
//! - Only a row is proof. An event without one may be under way elsewhere; the claim of its transaction finds out.
//! - The new events of a key keep their order: they come back to where they were. It makes no difference whether an
//!   event behind them that is handled leaves before or after them.
//! - One lookup runs at a time, in the place of a handler. Meanwhile, events gather for the next one.
//!
//! Whether the server says that it delivered a message before does not help: to a new durable, all messages are new.

use tokio::time::Instant;

use super::held::{Held, Manner, Origin};
use super::lanes::Lane;
use super::{Content, Disposition, Scheduler, Work};

/// After this many events in a row that were handled already, the next ones are looked up.
pub(super) const ENOUGH: u32 = 8;

/// Skipping ends once lookups in a row, each with mostly new events, have found this many new events.
const ENOUGH_NEW: usize = 64;

/// The most events that one statement looks up.
const MOST: usize = 1_000;

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skipping {
    /// Events run as they come. `in_a_row` is how many of the last ones were handled already, without another between.
    AsTheyCome { in_a_row: u32 },
    /// Events are looked up. `under_way`: whether a lookup is. `new`: how many new events the last lookups found that
    /// had mostly new ones.
    LookedUp { under_way: bool, new: usize },
}

impl Skipping {
    pub(super) fn new() -> Self {
        Self::AsTheyCome { in_a_row: 0 }
    }

    /// Whether events are looked up before they run.
    fn is_on(self) -> bool {
        matches!(self, Self::LookedUp { .. })
    }

    /// An event of the stream has run. `skipped`: it was handled already.
    pub(super) fn ran(&mut self, skipped: bool) {
        *self = match *self {
            Self::AsTheyCome { in_a_row } if skipped && in_a_row + 1 >= ENOUGH => {
                Self::LookedUp { under_way: false, new: 0 }
            }
            Self::AsTheyCome { in_a_row } if skipped => Self::AsTheyCome { in_a_row: in_a_row + 1 },
            Self::AsTheyCome { .. } => Self::new(),
            looked_up => looked_up,
        };
    }

    fn begins(&mut self) {
        let new = self.new_ones();
        *self = Self::LookedUp { under_way: true, new };
    }

    fn new_ones(self) -> usize {
        match self {
            Self::AsTheyCome { .. } => 0,
            Self::LookedUp { new, .. } => new,
        }
    }

    /// A lookup has ended: how many events it was asked for, and how many of them were handled already.
    fn ended(&mut self, asked: usize, handled: usize) {
        let new = match handled * 2 < asked {
            true => self.new_ones() + (asked - handled),
            false => 0,
        };
        *self = match new < ENOUGH_NEW {
            true => Self::LookedUp { under_way: false, new },
            false => Self::new(),
        };
    }
}

impl Held {
    /// Whether it is to be looked up while events are. What failed here, or may kill the process, has begun already.
    fn is_unknown(&self) -> bool {
        !self.looked_up
            && matches!(self.origin, Origin::Stream { .. })
            && matches!(self.manner, Manner::InBatch | Manner::ByItself)
            && matches!(*self.content, Content::Event(_))
    }
}

impl<A> Scheduler<A> {
    /// Whether this event must be looked up before it runs.
    pub(super) fn must_be_looked_up(&self, held: &Held) -> bool {
        self.skipping.is_on() && held.is_unknown()
    }

    /// Looks up what waits, if what is next must be looked up. Returns whether there may be more to start. `None`: what
    /// is next runs.
    pub(super) fn look_up(&mut self, now: Instant) -> Option<bool> {
        let next = self.lanes.next().is_some_and(|held| self.must_be_looked_up(held));
        if !next {
            return None;
        }
        if matches!(self.skipping, Skipping::LookedUp { under_way: true, .. }) {
            return Some(false);
        }
        let (mut lanes, mut events) = (Vec::new(), 0);
        while events < MOST
            && let Some((lane, first)) = self.lanes.take()
        {
            if !first.is_unknown() {
                self.lanes.put_back(lane, first);
                break;
            }
            let mut stretch = vec![first];
            while events + stretch.len() < MOST
                && let Some(next) = self.lanes.take_also(&lane, Held::is_unknown)
            {
                stretch.push(next);
            }
            events += stretch.len();
            lanes.push((lane, stretch));
        }
        self.skipping.begins();
        self.run(Work::LookUp(lanes), now);
        Some(true)
    }

    /// A lookup has ended. What was handled already leaves; the rest is next, in its order.
    pub(super) fn looked_up(&mut self, lanes: Vec<(Lane, Vec<(Held, Disposition)>)>, now: Instant) {
        let (mut asked, mut handled, mut rest) = (0, 0, Vec::new());
        for (lane, events) in lanes {
            let mut back = Vec::new();
            for (held, disposition) in events {
                asked += 1;
                handled += usize::from(matches!(disposition, Disposition::Skipped));
                if let Some((mut held, _)) = self.settle_one(&lane, held, disposition, None, now) {
                    held.looked_up = true;
                    back.push(held);
                }
            }
            match back.is_empty() {
                true => self.lanes.done(lane),
                false => rest.push((lane, back)),
            }
        }
        for (lane, back) in rest.into_iter().rev() {
            self.lanes.come_back(lane, back);
        }
        self.skipping.ended(asked, handled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_looked_up_after_enough_in_a_row_and_until_most_are_new() {
        let mut skipping = Skipping::new();
        for _ in 1..ENOUGH {
            skipping.ran(true);
        }
        skipping.ran(false);
        for _ in 1..ENOUGH {
            skipping.ran(true);
            assert!(!skipping.is_on(), "they were interrupted by one that was new");
        }
        skipping.ran(true);
        assert!(skipping.is_on());
        skipping.ran(false);
        skipping.begins();
        skipping.ended(3, 2);
        assert!(skipping.is_on(), "a single one that is new ends nothing");
        skipping.begins();
        skipping.ended(4, 2);
        assert_eq!(skipping, Skipping::LookedUp { under_way: false, new: 0 });
        skipping.begins();
        skipping.ended(ENOUGH_NEW + 1, 1);
        assert_eq!(skipping, Skipping::new());
    }

    #[test]
    fn small_lookups_of_new_events_end_nothing_unless_there_are_enough_of_them_in_a_row() {
        let mut skipping = Skipping::LookedUp { under_way: false, new: 0 };
        let mut looks = |asked, handled| {
            skipping.begins();
            skipping.ended(asked, handled);
            skipping.is_on()
        };
        assert!(looks(ENOUGH_NEW - 1, 0), "a few are new");
        assert!(looks(30, 30), "what follows comes again");
        assert!(looks(ENOUGH_NEW - 1, 0), "those before do not count any more");
        assert!(!looks(2, 0), "it goes on with new ones");
    }
}
