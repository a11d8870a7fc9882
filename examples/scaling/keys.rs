//! The share of events that goes to each of several places if keys are spread by a hash.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::load::Load;

/// The share of each key in all events, with the hottest key first.
pub fn parts(load: &Load) -> Vec<f64> {
    let weights: Vec<f64> =
        (1..=load.keys.max(1)).map(|rank| (rank as f64).powf(-load.skew)).collect();
    let all: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / all).collect()
}

/// The share of each place. A good hash puts a key into any place with equal probability, so this draws places at
/// random.
pub fn spread(parts: &[f64], places: usize, seed: u64) -> Vec<f64> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut shares = vec![0.0; places];
    for part in parts {
        shares[random.random_range(0..places)] += part;
    }
    shares
}
