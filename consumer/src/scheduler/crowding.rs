//! Which failing keys wait in the table rather than in this process, so that they leave room for the others.
//!
//! The server sends at most `prefetch` events before it gets an acknowledgement, and the events behind a failing one
//! cannot be acknowledged. With that many events behind one key, no event of any other key would arrive. So when
//! failing keys hold more than half of the places, the consumer *parks* the key that holds the most: one statement
//! moves the failing event and those behind it to the table of dead letters, and then they are acknowledged. Later
//! events of that key follow them, for as long as the table holds any of them. From there they are handled as all
//! parked events are, in their order: see `parked_events.rs`.
//!
//! ```text
//!                        fails, and crowds                      the table holds none of it
//!   handled as it comes ───────────────────► parked as it comes ──────────────────────────► handled as it comes
//! ```
//!
//! Alternatives that were considered:
//!
//! - Hold more events. That needs memory for the payloads, and the server delivers all of them again after each crash.
//!   Past any bound, all keys stop as before. The bound cannot be in bytes, because a consumer that stops reading
//!   loses its pin.
//! - Hold only the places, and fetch the messages again. A message may be gone from the stream by then.
//! - Leave the events to the server's redelivery. It delivers them behind later events of the key.
//!
//! A key that holds a single place is not parked. If many different keys hold half of all places, the keys are
//! not to blame: something that they all need is away, and reading on would only fill the table.
//!
//! The order of a key rests on the table, not on the memory of this process: each claim finds out whether the table
//! holds events of the key, whoever put them there (`claim.sql`, `blocked.sql`). What is known here only saves a claim
//! per event.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::disposition::Parking;
use super::lanes::Lane;

/// How often the consumer checks whether failing keys take the others' room.
const INTERVAL: Duration = Duration::from_millis(10);

/// How long until the next try after one that failed.
const NEXT_TRY: Duration = Duration::from_secs(1);

/// How many keys with events in the table are remembered.
const MOST_KNOWN: usize = 10_000;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Crowding {
    /// How many places the failing keys of a partition may hold.
    share: usize,
    look_at: Option<Instant>,
    not_before: Instant,
    table: Table,
    waiting: HashSet<Lane>,
}

/// Whether the table takes more waiting events, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    HasRoom,
    Full,
}

/// A key whose first event has failed and waits in this process for its next attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing<'a> {
    pub(super) lane: &'a Lane,
    pub(super) partition: u32,
    /// How many events it holds.
    pub(super) held: usize,
}

impl Crowding {
    /// `places`: how many events of a partition the server sends before it gets an acknowledgement.
    pub(super) fn new(places: usize, now: Instant) -> Self {
        Self {
            share: places / 2,
            look_at: None,
            not_before: now,
            table: Table::HasRoom,
            waiting: HashSet::new(),
        }
    }

    /// A failing key holds more than before.
    pub(super) fn grew(&mut self, now: Instant) {
        self.look_at.get_or_insert((now + INTERVAL).max(self.not_before));
    }

    /// When to ask for the [`next`](Self::next) key. `None` while the answer would be none.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// The key to park now, if failing keys crowd.
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
        // Another key may crowd, too.
        self.look_at = next.map(|_| now + INTERVAL);
        next.map(|key| key.lane)
    }

    /// The table holds events of this key.
    pub(super) fn waits(&mut self, lane: &Lane) {
        if !matches!(lane, Lane::Key(_)) {
            return;
        }
        if self.waiting.len() >= MOST_KNOWN {
            self.waiting.clear();
        }
        self.waiting.insert(lane.clone());
    }

    /// Whether to park events of this key as they come.
    pub(super) fn is_waiting(&self, lane: &Lane) -> bool {
        self.waiting.contains(lane)
    }

    /// Takes note of what became of events of this key that were to be parked. Returns the state of the table if it
    /// has changed.
    pub(super) fn parked(&mut self, lane: &Lane, parking: Parking, now: Instant) -> Option<Table> {
        match parking {
            Parking::Done => self.waits(lane),
            Parking::NotBehind | Parking::Failed => drop(self.waiting.remove(lane)),
            Parking::Full => {}
        }
        if matches!(parking, Parking::Full | Parking::Failed) {
            self.not_before = now + NEXT_TRY;
            self.look_at = Some(self.not_before);
        }
        let table = match parking {
            Parking::Full => Table::Full,
            Parking::Done => Table::HasRoom,
            Parking::NotBehind | Parking::Failed => self.table,
        };
        let changed = table != self.table;
        self.table = table;
        changed.then_some(table)
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
        assert_eq!(crowding.parked(&a, Parking::Full, now), Some(Table::Full));
        assert_eq!(crowding.parked(&a, Parking::Full, now), None);
        assert!(crowding.is_waiting(&a));
        crowding.look_at = None;
        crowding.grew(now);
        assert_eq!(crowding.look_at(), Some(now + NEXT_TRY));
        assert_eq!(crowding.parked(&a, Parking::Failed, now), None);
        assert_eq!(crowding.parked(&a, Parking::Done, now), Some(Table::HasRoom));
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
