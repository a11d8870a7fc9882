//! Medians, spreads, percentiles.

use serde::{Deserialize, Serialize};

/// The median, the smallest and the largest of some figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median. For an even number of figures, the mean of the two in the middle.
    pub median: f64,
    /// The smallest one.
    pub min: f64,
    /// The largest one.
    pub max: f64,
}

impl Spread {
    /// The spread of these figures. All values are 0 if there are none.
    pub fn of(figures: &[f64]) -> Self {
        let sorted = sorted(figures);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            return Self::default();
        };
        let half = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[half],
            _ => f64::midpoint(sorted[half - 1], sorted[half]),
        };
        Self { median, min, max }
    }
}

/// The figures in ascending order.
pub fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures
}

/// The smallest figure that `share` of all figures do not exceed; `sorted` is in ascending order and not empty.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_and_the_ends_in_any_order() {
        let spread = |figures: &[f64]| Spread::of(figures);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(spread(&[7.0]), Spread { median: 7.0, min: 7.0, max: 7.0 });
        assert_eq!(spread(&[]), Spread::default());
    }

    #[test]
    fn a_percentile_is_a_figure_that_was_measured() {
        let figures: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(percentile(&figures, 0.5), 500.0);
        assert_eq!(percentile(&figures, 0.999), 999.0);
        assert_eq!(percentile(&figures, 1.0), 1000.0);
        assert_eq!(percentile(&[5.0], 0.5), 5.0);
    }
}
