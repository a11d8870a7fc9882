//! The states of a dead letter. The [module above](super) has the drawing.

use std::fmt;

use serde::Serialize;

/// The state of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LetterState {
    /// Given up.
    Dead,
    /// Waits until the relay ships it or the consumer handles it, or waits behind a dead event of its key.
    Parked,
    /// Shipped or handled after it had been given up.
    Retried,
    /// Will not be shipped or handled, because an operator discarded it.
    Discarded,
}

impl LetterState {
    const ALL: [Self; 4] = [Self::Dead, Self::Parked, Self::Retried, Self::Discarded];

    /// The text that the table holds.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Parked => "parked",
            Self::Retried => "retried",
            Self::Discarded => "discarded",
        }
    }

    /// Whether the event is still to be shipped, handled or discarded.
    pub fn is_unresolved(self) -> bool {
        matches!(self, Self::Dead | Self::Parked)
    }

    /// The state for a text of the table.
    ///
    /// # Errors
    /// [`sqlx::Error::Decode`] if the text is no state.
    pub fn read(text: &str) -> Result<Self, sqlx::Error> {
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| {
            sqlx::Error::Decode(format!("{text:?} is not a state of a dead letter").into())
        })
    }
}

impl fmt::Display for LetterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
