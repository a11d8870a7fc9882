//! How the trail stands, for health endpoints.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// How long a stream may stand still that has messages to be read.
const STANDSTILL: Duration = Duration::from_secs(60);

/// How the trail stands.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct TrailState {
    /// Whether this process reads. If not, it waits, or another one does.
    pub active: bool,
    /// Whether another process holds the trail, so that this one stands by.
    pub standing_by: bool,
    /// What keeps the process from reading anything. `None`: nothing does.
    pub problem: Option<String>,
    /// The streams.
    pub streams: BTreeMap<String, StreamState>,
}

/// How the trail stands with one stream.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StreamState {
    /// The sequence of the last message that was recorded in the stream's present life. 0: none was.
    pub sequence: u64,
    /// How far the stream was when it was last looked at.
    pub last_sequence: u64,
    /// Why the stream cannot be read. `None`: it can.
    pub problem: Option<String>,
    #[serde(skip)]
    pub(crate) moved: Option<Instant>,
    /// Up to where nothing more is to be read: what was not recorded has left the stream, or is too old.
    #[serde(skip)]
    pub(crate) read_to: u64,
}

impl StreamState {
    pub(crate) fn new() -> Self {
        Self { sequence: 0, last_sequence: 0, problem: None, moved: None, read_to: 0 }
    }

    /// How many messages the trail is behind, at most: some of them may have left the stream.
    pub fn lag(&self) -> u64 {
        self.last_sequence.saturating_sub(self.sequence.max(self.read_to))
    }
}

impl TrailState {
    /// Why the trail is not ready. `None`: it reads and keeps up, or stands by.
    pub fn not_ready(&self) -> Option<String> {
        if self.standing_by {
            return None;
        }
        if let Some(problem) = &self.problem {
            return Some(problem.clone());
        }
        if !self.active {
            return Some("it has not begun to read".to_owned());
        }
        self.streams.iter().find_map(|(name, stream)| match &stream.problem {
            Some(problem) => Some(format!("stream {name}: {problem}")),
            None if stream.lag() > 0
                && stream.moved.is_some_and(|moved| moved.elapsed() > STANDSTILL) =>
            {
                Some(format!(
                    "stream {name}: nothing was read for a minute, and {} messages wait",
                    stream.lag()
                ))
            }
            None => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_ready_only_while_it_keeps_up_or_stands_by() {
        let mut state = TrailState::default();
        assert!(state.not_ready().unwrap().contains("not begun"));
        state.standing_by = true;
        assert_eq!(state.not_ready(), None);
        (state.standing_by, state.active) = (false, true);
        let mut stream = StreamState::new();
        (stream.sequence, stream.last_sequence) = (5, 9);
        stream.moved = Some(Instant::now());
        state.streams.insert("ORDERS".into(), stream);
        assert_eq!(state.not_ready(), None);
        tokio::time::advance(STANDSTILL * 2).await;
        assert!(state.not_ready().unwrap().contains("4 messages wait"));
        state.streams.get_mut("ORDERS").unwrap().read_to = 9;
        assert_eq!(state.not_ready(), None, "there is nothing to read");
        state.streams.get_mut("ORDERS").unwrap().sequence = 9;
        assert_eq!(state.not_ready(), None, "everything was read");
        state.streams.get_mut("ORDERS").unwrap().problem = Some("away".into());
        assert_eq!(state.not_ready().unwrap(), "stream ORDERS: away");
        state.problem = Some("the database is away".into());
        assert_eq!(state.not_ready().unwrap(), "the database is away");
    }
}
