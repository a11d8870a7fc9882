//! The places of the events that a process holds, and whether it may hold another one.
//!
//! The server delivers at most `prefetch` events before one of them is acknowledged. But when the stream removes a
//! delivered message (a limit with `discard = old`, a purge), the server forgets the delivery, and delivers another
//! message instead, again and again. So a process counts what it holds, and takes no message from its subscription
//! while it holds as many as it may.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::Notify;

use crate::place::Place;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Places {
    held: Mutex<HeldPlaces>,
    fewer: Notify,
}

#[derive(Debug, Default)]
struct HeldPlaces {
    /// The oldest first, each with its partition.
    partitions: BTreeMap<Place, u32>,
    /// How many of each partition.
    counts: HashMap<u32, usize>,
}

impl Places {
    /// An event at this place, read as this partition, is held.
    pub(super) fn add(&self, place: Place, partition: u32) {
        let mut held = self.held();
        let before = held.partitions.insert(place, partition);
        if before != Some(partition) {
            held.uncount(before);
            *held.counts.entry(partition).or_default() += 1;
        }
    }

    /// It is no longer held.
    pub(super) fn remove(&self, place: &Place) {
        {
            let mut held = self.held();
            let partition = held.partitions.remove(place);
            held.uncount(partition);
        }
        self.fewer.notify_waiters();
    }

    /// Nothing is held any longer.
    pub(super) fn clear(&self) {
        *self.held() = HeldPlaces::default();
        self.fewer.notify_waiters();
    }

    /// When the oldest event that is held was stored in the stream.
    pub(super) fn oldest(&self) -> Option<SystemTime> {
        self.held().partitions.keys().next().map(Place::stored)
    }

    /// Whether an arriving message may be held, if at most `most` of its partition may be: it is held already, or there
    /// is room.
    pub(super) fn takes(&self, place: &Place, partition: u32, most: usize) -> bool {
        let held = self.held();
        held.partitions.contains_key(place) || held.of(partition) < most
    }

    /// Returns when fewer than this many events of a partition are held. Safe to cancel.
    pub(super) async fn room(&self, partition: u32, most: usize) {
        loop {
            // Made before the check, so that no removal in between is missed.
            let fewer = self.fewer.notified();
            if self.held().of(partition) < most {
                return;
            }
            fewer.await;
        }
    }

    fn held(&self) -> MutexGuard<'_, HeldPlaces> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldPlaces {
    fn of(&self, partition: u32) -> usize {
        self.counts.get(&partition).copied().unwrap_or(0)
    }

    fn uncount(&mut self, partition: Option<u32>) {
        let Some(partition) = partition else { return };
        if let Some(count) = self.counts.get_mut(&partition) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&partition);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use futures::FutureExt;

    use super::*;

    fn place(sequence: u64) -> Place {
        Place::new("ORDERS", sequence, UNIX_EPOCH + Duration::from_secs(sequence))
    }

    #[tokio::test]
    async fn each_partition_has_its_own_room_and_what_is_held_comes_again_whatever_the_room() {
        let places = Places::default();
        for (sequence, partition) in [(1, 0), (2, 0), (2, 0), (3, 1)] {
            assert!(places.takes(&place(sequence), partition, 2));
            places.add(place(sequence), partition);
        }
        assert!(!places.takes(&place(4), 0, 2));
        assert!(places.takes(&place(2), 0, 2), "it is held");
        assert!(places.takes(&place(4), 1, 2), "another partition");
        assert!(places.takes(&place(4), 7, 2), "one of which nothing is held");
        assert_eq!(places.oldest(), Some(place(1).stored()));
        places.remove(&place(9));
        assert!(!places.takes(&place(4), 0, 2), "that one was not held");
        places.remove(&place(1));
        assert!(places.takes(&place(4), 0, 2));
        assert_eq!(places.oldest(), Some(place(2).stored()));
    }

    #[tokio::test]
    async fn whoever_waits_for_room_is_woken_by_it() {
        let places = Places::default();
        places.add(place(1), 3);
        places.add(place(2), 3);
        places.room(0, 1).await;
        let mut room = Box::pin(places.room(3, 2));
        assert!(room.as_mut().now_or_never().is_none());
        places.remove(&place(7));
        assert!(room.as_mut().now_or_never().is_none(), "there is none yet");
        places.remove(&place(2));
        assert!(room.now_or_never().is_some());
        let mut room = Box::pin(places.room(3, 1));
        assert!(room.as_mut().now_or_never().is_none());
        places.clear();
        assert!(room.now_or_never().is_some());
    }
}
