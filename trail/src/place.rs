//! How far a stream has been read.

use pillarbox_relay::broker::{MessageHead, StreamLife};
use time::OffsetDateTime;

/// The last message of a stream that was read: its life, its sequence there, and when it was stored. All three are
/// needed. A stream that was created anew gives the same sequences to other messages, and so does one that was restored
/// from a backup, whose creation time stays the same. Times are in microseconds, as in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) life: OffsetDateTime,
    pub(crate) sequence: u64,
    pub(crate) stored: OffsetDateTime,
}

impl Place {
    /// The place after this message of this life.
    pub(crate) fn after(life: OffsetDateTime, sequence: u64, stored: OffsetDateTime) -> Self {
        Self { life: microseconds(life), sequence, stored: microseconds(stored) }
    }

    /// Whether this is the message at the place.
    pub(crate) fn is(&self, head: &MessageHead) -> bool {
        self.sequence == head.sequence && self.stored == microseconds(head.stored)
    }
}

/// The place from which reading can go on in the present life of a stream, if the message at the place is still there:
/// `at_place` is what the stream holds at its sequence or after it.
///
/// Only the same message at the same sequence proves that the stream is the one that was read before. Without the
/// proof, everything is read that the stream still holds of the time from `since` on, and what the trail has already is
/// left as it is.
pub(crate) fn proven(
    place: Place,
    life: &StreamLife,
    at_place: Option<&MessageHead>,
    since: OffsetDateTime,
) -> bool {
    place.life == microseconds(life.created)
        && place.sequence <= life.last_sequence
        && place.stored >= since
        && at_place.is_some_and(|head| place.is(head))
}

/// A time as Postgres stores it.
pub(crate) fn microseconds(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(time.nanosecond() / 1_000 * 1_000).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    #[test]
    fn reading_goes_on_only_where_the_same_message_is_at_the_place() {
        let at = |seconds| OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds);
        let stored = at(100) + Duration::nanoseconds(1_234);
        let place = Place::after(at(10), 7, stored);
        let life = |created, last_sequence| {
            let mut life = StreamLife::default();
            (life.created, life.last_sequence) = (created, last_sequence);
            life
        };
        let head = |sequence, stored| {
            let (subject, headers) = (String::new(), Vec::new());
            MessageHead { sequence, stored, subject, headers, size: 0, fault: None }
        };
        let created = at(10) + Duration::nanoseconds(999);
        let (there, now) = (head(7, stored), life(created, 7));
        assert!(proven(place, &now, Some(&there), at(50)));
        assert!(!proven(place, &now, None, at(50)), "nothing is there");
        assert!(!proven(place, &now, Some(&head(8, stored)), at(50)), "it is gone");
        assert!(!proven(place, &now, Some(&head(7, at(101))), at(50)), "another message");
        assert!(!proven(place, &life(created, 6), Some(&there), at(50)), "it was set back");
        assert!(!proven(place, &life(at(11), 70), Some(&there), at(50)), "another life");
        assert!(!proven(place, &now, Some(&there), at(101)), "what is older would not be kept");
    }
}
