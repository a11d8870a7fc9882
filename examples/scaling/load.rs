//! The load: a number of events a day, with a peak.

use std::f64::consts::TAU;

pub const DAY: usize = 86_400;

#[derive(Clone, Debug, clap::Args)]
pub struct Load {
    /// Events a day.
    #[arg(long, default_value_t = 1e9)]
    pub events_per_day: f64,
    /// The peak as a multiple of the average.
    #[arg(long, default_value_t = 3.0)]
    pub peak_to_mean: f64,
    /// Bytes of an event's payload.
    #[arg(long, default_value_t = 256.0)]
    pub payload_bytes: f64,
    /// How many keys there are.
    #[arg(long, default_value_t = 1_000_000)]
    pub keys: usize,
    /// How uneven the keys are: the n-th key gets 1 / n^SKEW as much as the first. With 0 all keys get the same.
    #[arg(long, default_value_t = 0.6)]
    pub skew: f64,
}

/// The load of the quietest hour, as a fraction of the average.
const QUIETEST: f64 = 0.1;

impl Load {
    pub fn mean(&self) -> f64 {
        self.events_per_day / DAY as f64
    }

    pub fn peak(&self) -> f64 {
        self.mean() * self.peak_to_mean
    }

    /// The events in each second of a day that begins at midnight and has its peak at noon.
    pub fn day(&self) -> Vec<f64> {
        let shape = |sharpness: f64| -> Vec<f64> {
            (0..DAY)
                .map(|second| {
                    let noon = 0.5 - 0.5 * (TAU * second as f64 / DAY as f64).cos();
                    QUIETEST + (self.peak_to_mean - QUIETEST).max(0.0) * noon.powf(sharpness)
                })
                .collect()
        };
        // The sharper the peak, the lower the average, which must be 1.
        let (mut blunt, mut sharp) = (0.0, 1000.0);
        for _ in 0..40 {
            let middle = (blunt + sharp) / 2.0;
            match shape(middle).iter().sum::<f64>() > DAY as f64 {
                true => blunt = middle,
                false => sharp = middle,
            }
        }
        shape(blunt).into_iter().map(|part| part * self.mean()).collect()
    }
}
