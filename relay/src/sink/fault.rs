//! Whose fault it is when a message is not stored.
//!
//! | what happened | whose fault | what the relay does |
//! |---|---|---|
//! | the row's topic, type, key or headers break the rules for events | the event's | dead letter `invalid` |
//! | a column of the row cannot be read: bytes that are not text in UTF-8, an infinite time, a null, damaged storage | the event's | dead letter `unreadable` |
//! | headers and payload exceed the server's `max_payload` | the event's | dead letter `too_large` |
//! | the message exceeds the stream's `max_msg_size` (error 10054) | the event's | dead letter `too_large` |
//! | the headers exceed 64 KiB, which is the most that JetStream stores (error 10097) | the event's | dead letter `too_large` |
//! | no stream takes the subject, and the server says so itself | nobody's yet, or the event's with `no_stream = "dead-letter"` | hold, naming the subject; or dead letter `no_stream` |
//! | connection lost, no answer in time, no leader, not enough replicas | the broker's | hold |
//! | stream or account full (10077, 10047, …) | the broker's | hold |
//! | anything else that the server says | the broker's, until it has refused the event alone several times and stored others meanwhile; then the event's | hold; then dead letter `refused` |
//!
//! The last line is deliberate: the relay does not throw aside what it does not understand. It holds, where an
//! operator sees it, until the broker has shown that it stores other events and not this one.

use std::fmt;

use async_nats::jetstream;

/// What is wrong with an event that can never be stored. The text is the dead letter's `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The row breaks the rules for events.
    Invalid,
    /// The message is larger than the server or the stream takes.
    TooLarge,
    /// No stream takes its subject, and such events are not to be waited for.
    NoStream,
    /// A column of the row cannot be read.
    Unreadable,
    /// The server refuses it for a reason that this relay does not know, and stores other events meanwhile.
    Refused,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Invalid, Self::TooLarge, Self::NoStream, Self::Unreadable, Self::Refused];

    /// The fault that the server's error tells of, if it is the event's.
    pub(super) fn of(error: &jetstream::Error) -> Option<Self> {
        match error.error_code() {
            jetstream::ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM
            | jetstream::ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => Some(Self::TooLarge),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::TooLarge => "too_large",
            Self::NoStream => "no_stream",
            Self::Unreadable => "unreadable",
            Self::Refused => "refused",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_the_events_fault_is_held_against_it() {
        let error = |code: u64| -> jetstream::Error {
            serde_json::from_str(&format!(r#"{{"code":400,"err_code":{code},"description":"x"}}"#))
                .unwrap()
        };
        for too_large in [10054, 10097] {
            assert_eq!(Fault::of(&error(too_large)), Some(Fault::TooLarge), "{too_large}");
        }
        for broker in [10077, 10047, 10023, 10008, 10205, 99999] {
            assert_eq!(Fault::of(&error(broker)), None, "{broker}");
        }
    }
}
