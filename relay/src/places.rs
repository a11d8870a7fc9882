//! Where in a stream acknowledged events lie.
//!
//! A stream that has lost its last messages may be as long as before when the relay looks at it again, because other
//! producers have filled it up. Which event lies at an acknowledged place tells the difference.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

/// At most this many places of a stream are remembered.
const MOST: usize = 4;
/// How far apart in time they are at least, at first.
const APART: Duration = Duration::from_millis(250);

/// The largest payload, in bytes, whose place is remembered. To compare a place, the whole message is fetched, because
/// the server gives no headers alone, and the relay has only so much memory.
pub(crate) const LARGEST: usize = 1024 * 1024;

/// A place in a stream, and what was stored there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) sequence: u64,
    pub(crate) holds: Holds,
}

/// What was stored at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    Event(Uuid),
    /// The last event of a batch that the stream did not drop as a duplicate.
    OneOf(Arc<BatchEvents>),
}

impl Holds {
    pub(crate) fn may_be(&self, event: Uuid) -> bool {
        match self {
            Self::Event(stored) => *stored == event,
            Self::OneOf(events) => events.may_contain(event),
        }
    }
}

/// The ids of a batch's events, four bytes for each. So another event may seem to be one of them, and a loss stay
/// unnoticed, once in some ten thousand losses; none of them ever seems to be another event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BatchEvents {
    digests: Vec<u32>,
    /// Whether one of them has a payload over [`LARGEST`].
    has_large: bool,
}

impl BatchEvents {
    pub(crate) fn add(&mut self, event: Uuid, payload_bytes: usize) {
        self.digests.push(digest(event));
        self.has_large |= payload_bytes > LARGEST;
    }

    pub(crate) fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether the place of whichever of them is last may be compared.
    pub(crate) fn are_comparable(&self) -> bool {
        !self.has_large
    }

    fn may_contain(&self, event: Uuid) -> bool {
        self.digests.contains(&digest(event))
    }
}

fn digest(event: Uuid) -> u32 {
    let (high, low) = event.as_u64_pair();
    let both = high ^ low;
    // Both halves fit into 32 bits.
    #[allow(clippy::cast_possible_truncation)]
    let digest = (both >> 32) as u32 ^ both as u32;
    digest
}

/// What is known of whether a stream's acknowledgements name the places of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Naming {
    /// None was compared yet.
    #[default]
    Unknown,
    /// An acknowledged event was found at its place. So another event there is a loss.
    Places,
    /// Something else was found at the first place that was compared, for example because somebody else receives the
    /// events and stores them in a form of its own. Places prove nothing then.
    Nothing,
}

/// The newest place in a stream, and some before it, all acknowledged since the last checkpoint.
///
/// Older places count too: if a stream loses something while it is away for a moment, and the relay does not see that,
/// the newest place may be one from after the loss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// In the order of sequences. Each was the newest one from its time on.
    all: Vec<(Instant, Place)>,
    /// How often the distance in time was doubled.
    doubled: u32,
    /// The number of the connection on which the newest one was acknowledged.
    connection: u64,
}

impl Places {
    /// Remembers a place that was acknowledged on the connection with this number. One before the newest is left out.
    ///
    /// The first place of a connection stays beside the last one of the connection before, however near they are,
    /// because it may be from after a loss: messages that wait in the client are sent as soon as the broker is back,
    /// before the relay has looked.
    pub(crate) fn add(&mut self, place: Place, connection: u64, now: Instant) {
        match self.all.last_mut() {
            Some((_, last)) if place.sequence <= last.sequence => return,
            Some((since, last))
                if connection == self.connection && now < *since + APART * (1 << self.doubled) =>
            {
                *last = place;
                return;
            }
            _ => {}
        }
        if self.all.len() == MOST {
            let mut index = 0;
            self.all.retain(|_| {
                index += 1;
                index % 2 == 0
            });
            self.doubled = (self.doubled + 1).min(16);
        }
        self.all.push((now, place));
        self.connection = connection;
    }

    /// Newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Place> {
        self.all.iter().rev().map(|(_, place)| place)
    }

    /// Forgets the places up to this sequence.
    pub(crate) fn forget_up_to(&mut self, sequence: u64) {
        self.all.retain(|(_, place)| place.sequence > sequence);
        self.doubled = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(places: &Places) -> Vec<u64> {
        places.iter().map(|place| place.sequence).collect()
    }

    #[test]
    fn the_newest_place_is_kept_and_some_before_it() {
        let (mut places, begun) = (Places::default(), Instant::now());
        let mut add = |sequence, after: u64| {
            let holds = Holds::Event(Uuid::from_u64_pair(0, sequence));
            places.add(Place { sequence, holds }, 1, begun + Duration::from_millis(after));
            sequences(&places)
        };
        assert_eq!(add(1, 0), [1]);
        assert_eq!(add(2, 249), [2], "too near");
        assert_eq!(add(1, 300), [2], "a duplicate's place");
        assert_eq!(add(3, 300), [3, 2]);
        assert_eq!(add(4, 600), [4, 3, 2]);
        assert_eq!(add(5, 900), [5, 4, 3, 2]);
        assert_eq!(add(6, 1_200), [6, 5, 3], "every second one");
        assert_eq!(add(7, 1_699), [7, 5, 3], "they are half a second apart now");
        assert_eq!(add(8, 1_700), [8, 7, 5, 3]);
        for second in 2..100_000 {
            assert_eq!(add(second * 100, second * 1_000)[0], second * 100);
        }
        assert!(sequences(&places).len() <= MOST);
        places.forget_up_to(sequences(&places)[1]);
        assert_eq!(sequences(&places), [9_999_900]);
    }

    #[test]
    fn the_newest_place_before_the_connection_was_lost_is_kept() {
        let (mut places, now) = (Places::default(), Instant::now());
        let mut add = |sequence, connection| {
            let holds = Holds::Event(Uuid::nil());
            places.add(Place { sequence, holds }, connection, now);
            sequences(&places)
        };
        assert_eq!(add(1, 1), [1]);
        assert_eq!(add(2, 1), [2]);
        assert_eq!(add(3, 2), [3, 2], "in the same moment");
        assert_eq!(add(4, 2), [4, 2]);
        assert_eq!(add(5, 4), [5, 4, 2]);
    }

    #[test]
    fn every_event_of_a_batch_may_be_the_one_and_hardly_another() {
        let mut events = BatchEvents::default();
        let ids: Vec<Uuid> = (0..1_000).map(|_| Uuid::now_v7()).collect();
        ids.iter().for_each(|id| events.add(*id, 10));
        assert!(events.are_comparable());
        let holds = Holds::OneOf(Arc::new(events));
        assert!(ids.iter().all(|id| holds.may_be(*id)));
        let others = (0..1_000).filter(|_| holds.may_be(Uuid::now_v7())).count();
        assert!(others <= 3, "{others} of 1,000");
        // Ids that somebody counted up.
        let mut counted = BatchEvents::default();
        (0..1_000).for_each(|number| counted.add(Uuid::from_u128(number), LARGEST));
        assert!(counted.are_comparable());
        assert!(!counted.may_contain(Uuid::from_u128(1_000)));
        counted.add(Uuid::from_u128(1_000), LARGEST + 1);
        counted.add(Uuid::from_u128(1_001), 1);
        assert!(!counted.are_comparable(), "any of them may lie at the batch's place");
        let holds = Holds::Event(Uuid::from_u128(1));
        assert!(holds.may_be(Uuid::from_u128(1)) && !holds.may_be(Uuid::from_u128(2)));
    }
}
