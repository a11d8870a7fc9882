//! Decides whose fault it is if a message is not stored.
//!
//! | what happened | whose fault | what the relay does |
//! |---|---|---|
//! | the row's topic, type, key or headers break the rules for events | the event's | dead letter `invalid` |
//! | a column of the row cannot be read: bytes that are not text in UTF-8, an infinite time, a null, damaged storage | the event's | dead letter `unreadable` |
//! | headers and payload exceed the server's `max_payload` | the event's | dead letter `too_large` |
//! | the message exceeds the stream's `max_msg_size` (error 10054) | the event's | dead letter `too_large` |
//! | the message exceeds 32 MiB and the stream is stored in files (error 10077, "message too large") | the event's | dead letter `too_large` |
//! | the headers exceed 64 KiB, which is the most that JetStream stores (error 10097) | the event's | dead letter `too_large` |
//! | no stream takes the subject, and the server says so itself | nobody's yet, or the event's with `no_stream = "dead-letter"` | hold, naming the subject; or dead letter `no_stream` |
//! | connection lost, no answer in time, no leader, not enough replicas | the broker's | hold |
//! | the stream as a whole or the account is full (10077, 10047, …) | the broker's | hold |
//! | any other status of 500 and above | the broker's | hold |
//! | the subject is full, and its stream refuses new messages of it (`discard_new_per_subject`; error 10077, "maximum messages per subject exceeded") | the subject's | hold, and try the message alone; dead letter `refused` only with proof |
//! | any other refusal | nobody knows | hold, and try the message alone; dead letter `refused` only with proof |
//! | no answer for this message, again and again | nobody knows | the same |
//!
//! The last three lines are deliberate. An error that the relay does not know makes it hold, so that an operator sees
//! it. But one message must not hold all others for ever. So it becomes a dead letter once it was tried alone several
//! times without success, while the broker stored another message of its stream.

use async_nats::jetstream;

use crate::refused::Reason;

/// Whose fault an error of the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The event can never be stored.
    Event(Reason),
    /// The stream now stores no more messages of the event's subject, but it stores messages of other subjects.
    Subject,
    /// The server or the stream stores no messages now.
    Broker,
    /// The table does not know this error.
    Unknown,
}

/// Refusals below 500 that concern the space of a stream or an account. They hit large messages before small ones, so a
/// smaller message that is stored meanwhile would prove nothing.
const NO_ROOM: [u64; 5] = [10002, 10023, 10028, 10047, 10077];

impl Blame {
    /// The blame for an error of the server.
    pub(super) fn of(error: &jetstream::Error) -> Self {
        match error.error_code() {
            jetstream::ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM
            | jetstream::ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => Self::Event(Reason::TooLarge),
            // nats-server stores no message above 32 MiB in a file, whatever its max_payload is. It reports that under
            // the same code as a full stream.
            jetstream::ErrorCode::STREAM_STORE_FAILED
                if error.to_string().contains("message too large") =>
            {
                Self::Event(Reason::TooLarge)
            }
            // The server reports this under the same code as a full stream.
            jetstream::ErrorCode::STREAM_STORE_FAILED
                if error.to_string().contains("maximum messages per subject exceeded") =>
            {
                Self::Subject
            }
            code if error.code() >= 500 || NO_ROOM.contains(&code.0) => Self::Broker,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_the_events_fault_is_held_against_it() {
        let error = |status: u64, code: u64| -> jetstream::Error {
            serde_json::from_str(&format!(
                r#"{{"code":{status},"err_code":{code},"description":"x"}}"#
            ))
            .unwrap()
        };
        for too_large in [10054, 10097] {
            let blame = Blame::of(&error(400, too_large));
            assert_eq!(blame, Blame::Event(Reason::TooLarge), "{too_large}");
        }
        let in_a_file = r#"{"code":503,"err_code":10077,"description":"message too large"}"#;
        let in_a_file: jetstream::Error = serde_json::from_str(in_a_file).unwrap();
        assert_eq!(Blame::of(&in_a_file), Blame::Event(Reason::TooLarge));
        let of_text = |text: &str| {
            let error = format!(r#"{{"code":503,"err_code":10077,"description":"{text}"}}"#);
            Blame::of(&serde_json::from_str(&error).unwrap())
        };
        assert_eq!(of_text("maximum messages per subject exceeded"), Blame::Subject);
        for whole in ["maximum messages exceeded", "maximum bytes exceeded"] {
            assert_eq!(of_text(whole), Blame::Broker, "{whole}");
        }
        for (status, code) in [(400, 10077), (500, 10047), (503, 10023), (503, 10008), (503, 99999)]
        {
            assert_eq!(Blame::of(&error(status, code)), Blame::Broker, "{code}");
        }
        for code in [10205, 99999] {
            assert_eq!(Blame::of(&error(400, code)), Blame::Unknown, "{code}");
        }
    }
}
