//! Which failing keys wait in the table rather than in this process, so that they leave room for the others.
//!
//! The server sends no more than `prefetch` events before it is told of the first, and of those that it has sent, the
//! ones behind a failing event cannot be told of: with as many behind one key, nothing of any other key would come. So
//! when failing keys hold more than half of the places, the one that holds the most is *parked*: the failing event and
//! those behind it go to the table of dead letters, in one statement, and the server is told that they are done. What
//! comes later of that key goes there, too, for as long as something of it waits there. From there it is handled as any
//! parked event is, in its order: see `letters.rs`.
//!
//! ```text
//!                        fails, and crowds                      nothing of it is in the table
//!   handled as it comes ───────────────────► parked as it comes ──────────────────────────────► handled as it comes
//! ```
//!
//! Alternatives that were weighed:
//!
//! - To hold more. That needs room for the payloads, and the server delivers all of it again after each crash; beyond
//!   any bound the keys stand still as before. And it cannot be bounded in bytes, since a consumer that stops to read
//!   loses its pin.
//! - To hold the places only, and fetch the messages again. A message may be gone from the stream by then.
//! - To leave them to the server's redelivery. It comes behind later events of the key.
//!
//! A key that holds a single place is not parked: where half of all places are held by keys of their own, it is not one
//! key that fails but what they all need, and to read on would only fill the table.
//!
//! The order of a key rests on the table and on no memory of this process: each claim says whether something of the key
//! waits there, whoever put it there (`claim.sql`, `blocked.sql`). What is known here only spares one claim each.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::lanes::Lane;
use super::worker::Parking;

/// How often it is looked whether keys crowd.
const INTERVAL: Duration = Duration::from_millis(10);

/// How long until the next try, after one that did not succeed.
const NEXT_TRY: Duration = Duration::from_secs(1);

/// Of how many keys it is known that something waits in the table.
const MOST_KNOWN: usize = 10_000;

/// See the [module](self). Decides, and does nothing.
#[derive(Debug)]
pub(super) struct Crowding {
    /// How many places the failing keys of a partition may hold.
    share: usize,
    look_at: Option<Instant>,
    not_before: Instant,
    full: bool,
    waiting: HashSet<Lane>,
}

/// A key whose first event has failed, and waits for its next attempt in this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing<'a> {
    pub(super) lane: &'a Lane,
    pub(super) partition: u32,
    /// How many events it holds.
    pub(super) held: usize,
}

impl Crowding {
    /// `places`: how many the server sends of a partition.
    pub(super) fn new(places: usize, now: Instant) -> Self {
        Self {
            share: places / 2,
            look_at: None,
            not_before: now,
            full: false,
            waiting: HashSet::new(),
        }
    }

    /// A failing key holds more than before.
    pub(super) fn grew(&mut self, now: Instant) {
        self.look_at.get_or_insert((now + INTERVAL).max(self.not_before));
    }

    /// When to ask for the [`next`](Self::next) key, if that may be of use.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// The key to be parked now, if one is.
    pub(super) fn next<'a>(
        &mut self,
        now: Instant,
        failing: impl Iterator<Item = Failing<'a>> + Clone,
    ) -> Option<&'a Lane> {
        let mut held: HashMap<u32, usize> = HashMap::new();
        for key in failing.clone() {
            *held.entry(key.partition).or_default() += key.held;
        }
        let crowds = |key: &Failing<'_>| {
            key.held > 1 && held.get(&key.partition).is_some_and(|held| *held > self.share)
        };
        let next = failing.filter(crowds).max_by_key(|key| key.held);
        // There may be another one.
        self.look_at = next.map(|_| now + INTERVAL);
        next.map(|key| key.lane)
    }

    /// Something of this key waits in the table.
    pub(super) fn waits(&mut self, lane: &Lane) {
        if !matches!(lane, Lane::Key(_)) {
            return;
        }
        if self.waiting.len() >= MOST_KNOWN {
            self.waiting.clear();
        }
        self.waiting.insert(lane.clone());
    }

    /// Whether events of this key are to be parked as they come.
    pub(super) fn is_waiting(&self, lane: &Lane) -> bool {
        self.waiting.contains(lane)
    }

    /// What became of events of this key that were to be parked. Whether the table has become full, or has room again.
    pub(super) fn parked(&mut self, lane: &Lane, parking: Parking, now: Instant) -> Option<bool> {
        match parking {
            Parking::Done => self.waits(lane),
            Parking::NotBehind | Parking::Failed => drop(self.waiting.remove(lane)),
            Parking::Full => {}
        }
        if matches!(parking, Parking::Full | Parking::Failed) {
            self.not_before = now + NEXT_TRY;
            self.look_at = Some(self.not_before);
        }
        let full = match parking {
            Parking::Full => true,
            Parking::Done => false,
            Parking::NotBehind | Parking::Failed => self.full,
        };
        let changed = full != self.full;
        self.full = full;
        changed.then_some(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Lane {
        Lane::Key(name.into())
    }

    fn next(crowding: &mut Crowding, failing: &[(&Lane, u32, usize)]) -> Option<Lane> {
        let failing = failing.iter();
        let failing = failing.map(|&(lane, partition, held)| Failing { lane, partition, held });
        crowding.next(Instant::now(), failing).cloned()
    }

    #[tokio::test]
    async fn the_key_that_holds_the_most_is_parked_when_failing_keys_hold_more_than_half() {
        let mut crowding = Crowding::new(8, Instant::now());
        let (a, b) = (key("a"), key("b"));
        assert_eq!(next(&mut crowding, &[(&a, 0, 4)]), None);
        assert_eq!(crowding.look_at(), None);
        assert_eq!(next(&mut crowding, &[(&a, 0, 2), (&b, 0, 3)]), Some(b.clone()));
        assert!(crowding.look_at().is_some(), "there may be another one");
    }

    #[tokio::test]
    async fn a_partition_has_its_own_places() {
        let mut crowding = Crowding::new(8, Instant::now());
        let (a, b) = (key("a"), key("b"));
        assert_eq!(next(&mut crowding, &[(&a, 0, 4), (&b, 1, 4)]), None);
        assert_eq!(next(&mut crowding, &[(&a, 0, 4), (&b, 1, 5)]), Some(b));
    }

    #[tokio::test]
    async fn many_keys_that_fail_by_themselves_stay() {
        let mut crowding = Crowding::new(4, Instant::now());
        let keys: Vec<_> = (0..4).map(|number| key(&number.to_string())).collect();
        let failing: Vec<_> = keys.iter().map(|key| (key, 0, 1)).collect();
        assert_eq!(next(&mut crowding, &failing), None);
        // A place of one leaves no half: what waits behind another is parked at once.
        let mut crowding = Crowding::new(1, Instant::now());
        assert_eq!(next(&mut crowding, &[(&keys[0], 0, 2)]), Some(keys[0].clone()));
    }

    #[tokio::test]
    async fn a_key_is_parked_as_it_comes_until_nothing_of_it_waits() {
        let now = Instant::now();
        let mut crowding = Crowding::new(8, now);
        let a = key("a");
        assert_eq!(crowding.parked(&a, Parking::Done, now), None);
        assert!(crowding.is_waiting(&a) && !crowding.is_waiting(&key("b")));
        assert_eq!(crowding.parked(&a, Parking::NotBehind, now), None);
        assert!(!crowding.is_waiting(&a));
        crowding.waits(&a);
        assert_eq!(crowding.parked(&a, Parking::Failed, now), None);
        assert!(!crowding.is_waiting(&a), "the claim will say");
    }

    #[tokio::test]
    async fn a_full_table_is_told_once_and_tried_again_later() {
        let now = Instant::now();
        let mut crowding = Crowding::new(8, now);
        let a = key("a");
        crowding.waits(&a);
        assert_eq!(crowding.parked(&a, Parking::Full, now), Some(true));
        assert_eq!(crowding.parked(&a, Parking::Full, now), None);
        assert!(crowding.is_waiting(&a));
        crowding.look_at = None;
        crowding.grew(now);
        assert_eq!(crowding.look_at(), Some(now + NEXT_TRY));
        assert_eq!(crowding.parked(&a, Parking::Failed, now), None);
        assert_eq!(crowding.parked(&a, Parking::Done, now), Some(false));
    }

    #[tokio::test]
    async fn what_is_known_is_bounded() {
        let mut crowding = Crowding::new(8, Instant::now());
        for number in 0..=MOST_KNOWN {
            crowding.waits(&key(&number.to_string()));
        }
        assert_eq!(crowding.waiting.len(), 1);
    }
}
