//! How long to wait before the next try.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Waits between tries: each about twice as long as the one before, with jitter, and none longer than 5 s. They never
/// end.
#[derive(Debug)]
pub struct Backoff(ExponentialBackoff);

const LONGEST: Duration = Duration::from_secs(5);

impl Default for Backoff {
    /// The first wait is 50 ms, with jitter.
    fn default() -> Self {
        Self::starting_at(Duration::from_millis(50))
    }
}

impl Backoff {
    /// The first wait is `first`, with jitter.
    pub fn starting_at(first: Duration) -> Self {
        let waits = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(LONGEST / 2)
            .with_jitter()
            .without_max_times();
        Self(waits.build())
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        self.0.next().unwrap_or(LONGEST).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_seconds_and_never_end() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..100).map(|_| backoff.wait()).collect();
        assert!((50..=100).contains(&waits[0].as_millis()), "{:?}", waits[0]);
        assert!(waits[20..].iter().all(|wait| (LONGEST / 2..=LONGEST).contains(wait)));
    }
}
