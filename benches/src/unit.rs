//! Units of figures, and goals for them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Events or transactions per second.
    PerSecond,
    /// Milliseconds.
    Milliseconds,
    /// Bytes.
    Bytes,
    /// Mebibytes (2²⁰ bytes).
    Mebibytes,
    /// Per cent of a processor core.
    PercentOfCore,
    /// One figure divided by another.
    Ratio,
}

/// A goal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Goal {
    /// Whether this figure meets the goal.
    pub fn is_met_by(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(wanted) => figure >= wanted,
            Self::AtMost(wanted) => figure <= wanted,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(wanted) => write!(f, "≥ {wanted}"),
            Self::AtMost(wanted) => write!(f, "≤ {wanted}"),
        }
    }
}

impl Unit {
    /// Its name above a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "per second",
            Self::Milliseconds => "milliseconds",
            Self::Bytes => "bytes",
            Self::Mebibytes => "MiB",
            Self::PercentOfCore => "per cent of a core",
            Self::Ratio => "ratio",
        }
    }

    /// How it is written after a figure.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::PerSecond => "/s",
            Self::Milliseconds => " ms",
            Self::Bytes => " bytes",
            Self::Mebibytes => " MiB",
            Self::PercentOfCore => " % of a core",
            Self::Ratio => "",
        }
    }

    /// A figure in this unit, without the unit's name.
    pub fn show(self, figure: f64) -> String {
        match self {
            Self::PerSecond => count(figure.round() as u64),
            Self::Bytes | Self::Mebibytes => format!("{figure:.0}"),
            Self::Milliseconds | Self::PercentOfCore | Self::Ratio => format!("{figure:.2}"),
        }
    }
}

/// A whole number with commas, such as 12,345.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_people_read_them() {
        assert_eq!(Unit::PerSecond.show(1_234_567.8), "1,234,568");
        assert_eq!(Unit::PerSecond.show(123.4), "123");
        assert_eq!(Unit::Ratio.show(0.8549), "0.85");
    }

    #[test]
    fn a_goal_is_met_from_its_own_side_on() {
        assert!(Goal::AtLeast(0.85).is_met_by(0.85) && !Goal::AtLeast(0.85).is_met_by(0.8499));
        assert!(Goal::AtMost(5.0).is_met_by(5.0) && !Goal::AtMost(5.0).is_met_by(5.001));
    }
}
