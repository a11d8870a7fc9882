//! Which event may run next: in order within a lane, and any lane first.
//!
//! ```text
//!            push            take              done, more events wait
//!   (none) ───────► ready ─────────► running ─────────────────────────► ready
//!                     ▲                 │  done, none waits ──────────► (none)
//!                     └──── due ── resting ◄── retry
//! ```

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use crate::place::Place;

/// Events that are handled one after another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// The events of a key.
    Key(Arc<str>),
    /// The event at this place, which has no key, or whose order does not matter.
    Keyless(Place),
    /// Parked events that were taken together. The first one's position among the dead letters names them.
    Page(i64),
}

/// Events by lane. The caller bounds how many there are.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    lanes: HashMap<Lane, VecDeque<T>>,
    ready: VecDeque<Lane>,
    resting: BTreeSet<(Instant, Lane)>,
    /// How many events wait in all lanes.
    waiting: usize,
}

impl<T> Lanes<T> {
    pub(super) fn new() -> Self {
        Self { lanes: HashMap::new(), ready: VecDeque::new(), resting: BTreeSet::new(), waiting: 0 }
    }

    /// How many events wait in all lanes. Those that were taken do not count.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Adds an event behind the others of its lane.
    pub(super) fn push(&mut self, lane: Lane, event: T) {
        let queue = self.lanes.entry(lane.clone()).or_insert_with(|| {
            self.ready.push_back(lane);
            VecDeque::new()
        });
        queue.push_back(event);
        self.waiting += 1;
    }

    /// Takes the next event that may run. Its lane is then running, and gives no other event by this call until
    /// [`done`](Self::done) or [`retry`](Self::retry).
    pub(super) fn take(&mut self) -> Option<(Lane, T)> {
        loop {
            let lane = self.ready.pop_front()?;
            if let Some(event) = self.take_also(&lane, |_| true) {
                return Some((lane, event));
            }
        }
    }

    /// Takes one more event of a running lane, to run together with those that were taken before. `None` if the next
    /// one does not fit.
    pub(super) fn take_also(&mut self, lane: &Lane, fits: impl FnOnce(&T) -> bool) -> Option<T> {
        let event = self.lanes.get_mut(lane)?.pop_front_if(|event| fits(event))?;
        self.waiting -= 1;
        Some(event)
    }

    /// The next event that may run, if it is known which one.
    pub(super) fn next(&self) -> Option<&T> {
        self.lanes.get(self.ready.front()?)?.front()
    }

    /// These events, taken from this lane, come back in front of the others. They are the next to be taken.
    pub(super) fn come_back(
        &mut self,
        lane: Lane,
        events: impl IntoIterator<IntoIter: DoubleEndedIterator<Item = T>>,
    ) {
        self.back_in_front(&lane, events);
        self.ready.push_front(lane);
    }

    fn back_in_front(
        &mut self,
        lane: &Lane,
        events: impl IntoIterator<IntoIter: DoubleEndedIterator<Item = T>>,
    ) {
        let queue = self.lanes.entry(lane.clone()).or_default();
        for event in events.into_iter().rev() {
            queue.push_front(event);
            self.waiting += 1;
        }
    }

    /// This event was taken, and does not run now. It is the next to be taken.
    pub(super) fn put_back(&mut self, lane: Lane, event: T) {
        self.lanes.entry(lane.clone()).or_default().push_front(event);
        self.ready.push_front(lane);
        self.waiting += 1;
    }

    /// The events taken from this lane have left. The next ones may run.
    pub(super) fn done(&mut self, lane: Lane) {
        match self.lanes.get(&lane) {
            Some(others) if !others.is_empty() => self.ready.push_back(lane),
            // Not ready: should the lane come back, it would be ready twice, and two of its events would run at once.
            _ => drop(self.lanes.remove(&lane)),
        }
    }

    /// These events, taken from this lane, come back in front of the others. The lane rests until `at`.
    pub(super) fn retry(
        &mut self,
        lane: Lane,
        events: impl IntoIterator<IntoIter: DoubleEndedIterator<Item = T>>,
        at: Instant,
    ) {
        self.back_in_front(&lane, events);
        self.resting.insert((at, lane));
    }

    /// The resting lanes, with their events.
    pub(super) fn resting(&self) -> impl Iterator<Item = (&Lane, &VecDeque<T>)> + Clone {
        self.resting.iter().filter_map(|(_, lane)| Some((lane, self.lanes.get(lane)?)))
    }

    /// Whether any lane rests.
    pub(super) fn any_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Makes a resting lane a running one, as if an event of it had been taken. Returns until when it would have
    /// rested.
    pub(super) fn take_resting(&mut self, lane: &Lane) -> Option<Instant> {
        let found = self.resting.iter().find(|(_, resting)| resting == lane)?.clone();
        self.resting.remove(&found);
        Some(found.0)
    }

    /// The event taken from this lane has left, and the others must not run here. Returns them.
    pub(super) fn abandon(&mut self, lane: &Lane) -> VecDeque<T> {
        let abandoned = self.lanes.remove(lane).unwrap_or_default();
        self.waiting -= abandoned.len();
        abandoned
    }

    /// Takes out the waiting events for which `is_such` holds, in no order. Running lanes keep running.
    pub(super) fn remove(&mut self, mut is_such: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        let mut empty = HashSet::new();
        let idle: HashSet<Lane> =
            self.ready.iter().chain(self.resting.iter().map(|(_, lane)| lane)).cloned().collect();
        for (lane, queue) in &mut self.lanes {
            let (out, stay) = std::mem::take(queue).into_iter().partition(|event| is_such(event));
            *queue = stay;
            removed.extend::<VecDeque<T>>(out);
            if queue.is_empty() && idle.contains(lane) {
                empty.insert(lane.clone());
            }
        }
        self.lanes.retain(|lane, _| !empty.contains(lane));
        self.ready.retain(|lane| !empty.contains(lane));
        self.resting.retain(|(_, lane)| !empty.contains(lane));
        self.waiting -= removed.len();
        removed
    }

    /// Whether any lane is ready.
    pub(super) fn any_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When the next resting lane is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.resting.first().map(|(at, _)| *at)
    }

    /// Makes the resting lanes that are due ready.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((at, lane)) = self.resting.pop_first() {
            if at > now {
                self.resting.insert((at, lane));
                return;
            }
            self.ready.push_back(lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> Lane {
        Lane::Key(name.into())
    }

    #[tokio::test]
    async fn a_lane_gives_one_event_at_a_time_in_order_and_others_go_on() {
        let mut lanes = Lanes::new();
        for (name, event) in [("a", 1), ("a", 2), ("b", 3), ("a", 4)] {
            lanes.push(key(name), event);
        }
        assert_eq!(lanes.take(), Some((key("a"), 1)));
        assert_eq!(lanes.take(), Some((key("b"), 3)));
        assert_eq!(lanes.take(), None);
        lanes.done(key("a"));
        assert_eq!(lanes.take(), Some((key("a"), 2)));
        lanes.push(key("b"), 5);
        assert_eq!(lanes.take(), None, "b still runs");
        lanes.done(key("b"));
        assert_eq!(lanes.take(), Some((key("b"), 5)));
    }

    #[tokio::test]
    async fn a_failing_event_holds_back_its_own_lane_only() {
        let mut lanes = Lanes::new();
        lanes.push(key("a"), 1);
        lanes.push(key("a"), 2);
        let (lane, event) = lanes.take().unwrap();
        let at = Instant::now() + Duration::from_secs(1);
        lanes.retry(lane, [event], at);
        lanes.push(key("b"), 3);
        lanes.wake(Instant::now());
        assert_eq!(lanes.take(), Some((key("b"), 3)));
        assert_eq!(lanes.take(), None);
        assert_eq!(lanes.next_due(), Some(at));
        lanes.wake(at);
        assert_eq!(lanes.take(), Some((key("a"), 1)));
        lanes.done(key("a"));
        assert_eq!(lanes.take(), Some((key("a"), 2)));
    }

    #[tokio::test]
    async fn events_that_ran_together_come_again_in_order() {
        let mut lanes = Lanes::new();
        for event in 1..=4 {
            lanes.push(key("a"), event);
        }
        let (lane, first) = lanes.take().unwrap();
        let second = lanes.take_also(&lane, |_| true).unwrap();
        assert_eq!(lanes.take_also(&lane, |event| *event != 3), None);
        lanes.retry(lane, [first, second], Instant::now());
        for event in 1..=4 {
            lanes.wake(Instant::now());
            assert_eq!(lanes.take(), Some((key("a"), event)));
            lanes.done(key("a"));
        }
    }

    #[tokio::test]
    async fn a_lane_that_rests_can_be_taken_before_its_time_and_one_that_runs_be_given_up() {
        let mut lanes = Lanes::new();
        for (name, event) in [("a", 1), ("a", 2), ("b", 3), ("b", 4)] {
            lanes.push(key(name), event);
        }
        let (lane, event) = lanes.take().unwrap();
        let at = Instant::now() + Duration::from_secs(1);
        lanes.retry(lane, [event], at);
        let resting: Vec<_> = lanes.resting().map(|(lane, of)| (lane.clone(), of.len())).collect();
        assert_eq!(resting, [(key("a"), 2)]);
        assert_eq!(lanes.take_resting(&key("b")), None);
        assert_eq!(lanes.take_resting(&key("a")), Some(at));
        assert!(!lanes.any_resting());
        assert_eq!(lanes.take_also(&key("a"), |_| true), Some(1));
        lanes.push(key("a"), 5);
        lanes.done(key("a"));
        assert_eq!(lanes.take(), Some((key("b"), 3)));
        assert_eq!(lanes.abandon(&key("b")), [4]);
        assert_eq!(lanes.take(), Some((key("a"), 2)));
        assert_eq!(lanes.take_also(&key("a"), |_| true), Some(5));
        lanes.done(key("a"));
        assert!(lanes.lanes.is_empty() && lanes.ready.is_empty());
    }

    #[tokio::test]
    async fn waiting_events_can_be_taken_out_and_running_ones_keep_their_lane() {
        let mut lanes = Lanes::new();
        for (name, event) in [("a", 1), ("a", 2), ("b", 3), ("b", 40), ("c", 5), ("d", 6)] {
            lanes.push(key(name), event);
        }
        assert_eq!(lanes.take(), Some((key("a"), 1)));
        assert_eq!(lanes.take(), Some((key("b"), 3)));
        lanes.retry(key("b"), [3], Instant::now());
        let mut removed = lanes.remove(|event| *event < 6);
        removed.sort_unstable();
        assert_eq!(removed, [2, 3, 5]);
        lanes.push(key("a"), 7);
        assert_eq!(lanes.take(), Some((key("d"), 6)));
        assert_eq!(lanes.take(), None, "the first of a still runs, b rests");
        lanes.done(key("a"));
        lanes.wake(Instant::now());
        assert_eq!(lanes.take(), Some((key("a"), 7)));
        assert_eq!(lanes.take(), Some((key("b"), 40)));
        for name in ["a", "b", "d"] {
            lanes.done(key(name));
        }
        assert!(lanes.lanes.is_empty() && lanes.ready.is_empty() && lanes.resting.is_empty());
    }

    #[tokio::test]
    async fn an_empty_lane_takes_no_memory() {
        let mut lanes = Lanes::new();
        for number in 0..100 {
            let place = Place::new("ORDERS", number, std::time::SystemTime::UNIX_EPOCH);
            lanes.push(Lane::Keyless(place), number);
            let (lane, _) = lanes.take().unwrap();
            lanes.done(lane);
        }
        assert!(lanes.lanes.is_empty() && lanes.ready.is_empty());
    }
}
