//! Which part of the events goes to which of several places, when keys are spread by a hash.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::load::Load;

/// Each key's part of all events, the hottest first.
pub fn parts(load: &Load) -> Vec<f64> {
    let weights: Vec<f64> =
        (1..=load.keys.max(1)).map(|rank| (rank as f64).powf(-load.skew)).collect();
    let all: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / all).collect()
}

/// The part of each of so many places. A good hash puts a key anywhere with equal chance, so chance stands in.
pub fn spread(parts: &[f64], places: usize, seed: u64) -> Vec<f64> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut shares = vec![0.0; places];
    for part in parts {
        shares[random.random_range(0..places)] += part;
    }
    shares
}
