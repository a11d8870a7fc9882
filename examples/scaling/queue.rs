//! A queue of waiting events: how many wait, and for how long the oldest has waited.

use std::collections::VecDeque;

/// Anything below this is left over by rounding.
const NOTHING: f64 = 1e-6;

#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// The events that came in a second and still wait: the second, and their number.
    waiting: VecDeque<(usize, f64)>,
    length: f64,
}

impl Queue {
    pub fn put(&mut self, second: usize, events: f64) {
        if events > NOTHING {
            self.waiting.push_back((second, events));
            self.length += events;
        }
    }

    /// Takes up to `most` events, the oldest first.
    pub fn take(&mut self, most: f64) -> f64 {
        let mut left = most;
        while let Some((_, events)) = self.waiting.front_mut() {
            if *events > left + NOTHING {
                *events -= left;
                left = 0.0;
                break;
            }
            left = (left - *events).max(0.0);
            self.waiting.pop_front();
        }
        let taken = most - left;
        self.length = if self.waiting.is_empty() { 0.0 } else { (self.length - taken).max(0.0) };
        taken
    }

    pub fn length(&self) -> f64 {
        self.length
    }

    /// How long the oldest has waited, in seconds.
    pub fn age(&self, second: usize) -> usize {
        self.waiting.front().map_or(0, |(since, _)| second - since)
    }
}
