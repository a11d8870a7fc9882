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
    /// The message is larger than the server or the stream takes.
    TooLarge,
    /// No stream takes its subject, and such events are not to be waited for.
    NoStream,
    /// A column of the row cannot be read.
    Unreadable,
    /// The broker does not store it, alone and several times, and stores others meanwhile.
    Refused,
}

impl Reason {
    /// All of them.
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
