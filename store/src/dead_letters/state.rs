//! The states of a dead letter. The [module above](super) has the drawing.

use std::fmt;

use serde::Serialize;

/// The state of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum State {
    /// Given up.
    Dead,
    /// Waits for the relay to ship it, or for the consumer to handle it, or behind a dead event of its key.
    Parked,
    /// Shipped or handled after all.
    Retried,
    /// Not to be shipped or handled: an operator said so.
    Discarded,
}

impl State {
    const ALL: [Self; 4] = [Self::Dead, Self::Parked, Self::Retried, Self::Discarded];

    /// As it is written in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Parked => "parked",
            Self::Retried => "retried",
            Self::Discarded => "discarded",
        }
    }

    /// Whether somebody still has to do something about it.
    pub fn is_unresolved(self) -> bool {
        matches!(self, Self::Dead | Self::Parked)
    }

    /// Reads it from the table.
    ///
    /// # Errors
    /// [`sqlx::Error::Decode`] for a text that is no state.
    pub fn read(text: &str) -> Result<Self, sqlx::Error> {
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| {
            sqlx::Error::Decode(format!("{text:?} is not a state of a dead letter").into())
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
