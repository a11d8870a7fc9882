//! How a stream fills, and how much memory its writer uses meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_nats::jetstream::stream::Stream;
use tokio::time::sleep;

const INTERVAL: Duration = Duration::from_millis(10);
/// If there is no progress for this long, something is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// The observations of a stream that was being filled.
#[derive(Debug)]
pub struct Progress {
    looks: Vec<Look>,
}

/// One observation.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Seconds since the first message was seen.
    seconds: f64,
    /// The messages in the stream.
    pub messages: u64,
    /// The writer's memory, as `memory` says.
    pub memory: f64,
}

impl Progress {
    /// Observes a stream until it holds this many messages.
    ///
    /// # Errors
    /// If no progress is made.
    pub async fn watch(
        stream: &mut Stream,
        messages: u64,
        memory: impl Fn() -> f64,
    ) -> Result<Self> {
        let mut looks: Vec<Look> = Vec::new();
        let (mut begin, mut moved_at) = (None, Instant::now());
        loop {
            let now = stream.info().await?.state.messages;
            if now > looks.last().map_or(0, |look| look.messages) {
                moved_at = Instant::now();
                let seconds = begin.get_or_insert(moved_at).elapsed().as_secs_f64();
                looks.push(Look { seconds, messages: now, memory: memory() });
            }
            if now >= messages {
                return Ok(Self { looks });
            }
            ensure!(moved_at.elapsed() < PATIENCE, "no progress at {now} of {messages} messages");
            sleep(INTERVAL).await;
        }
    }

    /// All observations.
    pub fn looks(&self) -> &[Look] {
        &self.looks
    }

    /// The rates over equal pieces of this many messages. The first piece begins with the first message that was seen,
    /// so the start does not count.
    pub fn rates(&self, messages: u64, pieces: u64) -> Vec<f64> {
        let reached = |messages: u64| self.when(messages);
        let rate = |piece: u64| {
            let (begin, first) = reached(messages * piece / pieces);
            let (end, last) = reached(messages * (piece + 1) / pieces);
            (last - first) as f64 / (end - begin)
        };
        (0..pieces).map(rate).collect()
    }

    /// When this many messages were in the stream, in seconds, as if the writer had a constant rate between two
    /// observations. The time of the first observation, if there were more messages by then.
    fn when(&self, messages: u64) -> (f64, u64) {
        let later = self.looks.iter().position(|look| look.messages >= messages);
        let later = later.unwrap_or(self.looks.len() - 1);
        let look = self.looks[later];
        let Some(before) = later.checked_sub(1).map(|before| self.looks[before]) else {
            return (look.seconds, look.messages);
        };
        let share = (messages - before.messages) as f64 / (look.messages - before.messages) as f64;
        (before.seconds + share * (look.seconds - before.seconds), messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(looks: &[(f64, u64)]) -> Progress {
        let look = |(seconds, messages): &(f64, u64)| Look {
            seconds: *seconds,
            messages: *messages,
            memory: 0.0,
        };
        Progress { looks: looks.iter().map(look).collect() }
    }

    #[test]
    fn rates_are_those_between_looks_and_the_start_does_not_count() {
        // 10 a second, then 20.
        let even = progress(&[(0.0, 10), (4.0, 50), (6.5, 100)]);
        assert_eq!(even.rates(100, 2), [10.0, 20.0]);
        assert_eq!(even.rates(100, 4), [10.0, 10.0, 20.0, 20.0]);
    }
}
