//! Events that can never be stored, and why.

use std::fmt;

use uuid::Uuid;

/// An event that can never be stored.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) position: i64,
    pub(crate) event_id: Uuid,
    pub(crate) reason: Reason,
    pub(crate) error: String,
}

/// What is wrong with an event that can never be stored. The text is the dead letter's `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The row breaks the rules for events.
    Invalid,
    /// The message is larger than the server or the stream accepts.
    TooLarge,
    /// No stream takes its subject, and the relay is configured not to wait for one.
    NoStream,
    /// A column of the row cannot be read.
    Unreadable,
    /// The broker did not store it although it was sent alone several times, and stored other messages meanwhile.
    Refused,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 5] =
        [Self::Invalid, Self::TooLarge, Self::NoStream, Self::Unreadable, Self::Refused];
}

impl fmt::Display for Reason {
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
