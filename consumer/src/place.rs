//! A message's place in a stream.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pillarbox_inbox::source::Unreadable;

/// Where a message is stored: the stream, its sequence there, and when the stream stored it.
///
/// A sequence alone names a message only for as long as the stream lives. A stream that was deleted and created anew
/// begins at 1 again, and one that was restored from a backup, whose creation time stays the same, gives the sequences
/// after the backup a second time. So a place holds the time at which the stream stored the message, in nanoseconds.
/// That is finer than the stream's creation time, comes with each delivery, and stays the same for as long as the
/// message is stored: two messages of one sequence are always told apart, and one message keeps its place, also when
/// its stream is restored.
///
/// Places of one stream are ordered as the stream stored them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    stored: SystemTime,
    sequence: u64,
    stream: Arc<str>,
}

impl Place {
    pub(crate) fn new(stream: &str, sequence: u64, stored: SystemTime) -> Self {
        Self { stored, sequence, stream: stream.into() }
    }

    /// When the stream stored the message.
    pub(crate) fn stored(&self) -> SystemTime {
        self.stored
    }

    /// The message's sequence in the stream.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The stream.
    pub(crate) fn stream(&self) -> &str {
        &self.stream
    }

    /// Its name, `STREAM:sequence`, which is unique within one life of the stream.
    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.stream, self.sequence)
    }

    /// The message at this place, which is no event, in the form in which the inbox sets it aside.
    pub(crate) fn unreadable<'a>(
        &'a self,
        topic: &'a str,
        headers: &'a [(String, String)],
        payload: &'a [u8],
        error: &'a str,
    ) -> Unreadable<'a> {
        let (stream, sequence, stored) = (self.stream(), self.sequence, self.stored);
        Unreadable { stream, sequence, stored, topic, headers, payload, error }
    }

    /// When the stream stored the message, in nanoseconds since 1970.
    pub(crate) fn stored_nanos(&self) -> i128 {
        match self.stored.duration_since(UNIX_EPOCH) {
            Ok(since) => i128::try_from(since.as_nanos()).unwrap_or(i128::MAX),
            Err(before) => {
                i128::try_from(before.duration().as_nanos()).map_or(i128::MIN, |nanos| -nanos)
            }
        }
    }
}

/// `STREAM:sequence@nanoseconds`
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}@{}", self.stream, self.sequence, self.stored_nanos())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_sequence_in_two_lives_of_a_stream_is_two_places() {
        let stored = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_001);
        let place = Place::new("ORDERS", 6, stored);
        assert_eq!(place, Place::new("ORDERS", 6, stored));
        let later = Place::new("ORDERS", 6, stored + Duration::from_nanos(1));
        assert_ne!(place, later);
        assert!(place < later);
        assert_eq!(place.to_string(), "ORDERS:6@1700000000000000001");
        assert_eq!((place.stream(), place.sequence(), place.stored()), ("ORDERS", 6, stored));
    }
}
