//! What is measured, a file each.

pub mod drain;
pub mod latency;
pub mod live;
pub mod writers;

use std::collections::BTreeMap;

/// Named values of one measurement.
pub type Values = BTreeMap<String, f64>;

pub(crate) fn values<const N: usize>(pairs: [(&str, f64); N]) -> Values {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
