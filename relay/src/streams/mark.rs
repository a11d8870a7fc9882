//! How a stream stood, and what it has lost since.

use std::collections::BTreeMap;

use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use pillarbox_store::limit::within;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{API, BROKER, Untold, takes};

/// At most this many subjects of a stream are remembered.
const SUBJECTS: usize = 64;

/// How a stream stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When it was created. `None` if the API has never shown it, and all that is known is from acknowledgements.
    #[serde(with = "time::serde::rfc3339::option")]
    pub created: Option<OffsetDateTime>,
    /// Its last sequence; the last one acknowledged, if the API does not show it.
    pub last_sequence: u64,
    /// When that message was stored. `None` if it held no message.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_time: Option<OffsetDateTime>,
    /// The subjects that it takes or took, or some that it acknowledged.
    #[serde(default)]
    pub subjects: Vec<String>,
    /// When it last acknowledged something to the relay, by the relay's clock.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub acknowledged_at: Option<OffsetDateTime>,
    /// Whether the API shows it. If not, it is gone or out of sight, and nobody watches it for loss.
    pub shown: bool,
}

impl Mark {
    /// The mark of a stream of which only acknowledgements tell.
    pub(crate) fn of_acknowledgements() -> Self {
        Self {
            created: None,
            last_sequence: 0,
            last_time: None,
            subjects: Vec::new(),
            acknowledged_at: None,
            shown: false,
        }
    }

    /// Adds what it acknowledged and its own subjects do not tell of, as through a mapping of the account.
    pub(crate) fn acknowledged<'a>(&mut self, subjects: impl IntoIterator<Item = &'a String>) {
        for subject in subjects {
            if !self.is_taken(subject) {
                self.takes([subject]);
            }
        }
    }

    /// Whether the stream takes, took, or has acknowledged this subject.
    pub fn is_taken(&self, subject: &str) -> bool {
        takes(&self.subjects, subject)
    }

    /// Adds subjects. None is taken away: what is in the stream stays there when its subjects change.
    pub(crate) fn takes<'a>(&mut self, subjects: impl IntoIterator<Item = &'a String>) {
        for subject in subjects {
            if self.subjects.len() < SUBJECTS && !self.subjects.contains(subject) {
                self.subjects.push(subject.clone());
            }
        }
    }
}

/// How the streams stood, by name.
pub type Marks = BTreeMap<String, Mark>;

/// What the stream has lost since `before`, if anything.
pub(crate) async fn lost(
    stream: &Stream,
    now: &Mark,
    before: &Mark,
) -> Result<Option<String>, Untold> {
    if let (Some(now), Some(before)) = (now.created, before.created)
        && now != before
    {
        return Ok(Some(format!("it was created anew at {now}")));
    }
    if let Some(how) = shorter(now, before.last_sequence) {
        return Ok(Some(how));
    }
    let Some(stored) = before.last_time else {
        return Ok(None);
    };
    if now.last_sequence == before.last_sequence && now.last_time == before.last_time {
        return Ok(None);
    }
    let asked = within(API, BROKER, stream.get_raw_message(before.last_sequence)).await;
    match asked.map_err(|late| Untold::by(&stream.cached_info().config.name, &late))? {
        Ok(message) if message.time == stored => Ok(None),
        Ok(_) => Ok(Some(format!("its message {} is another one", before.last_sequence))),
        // Past the stream's own limits, or consumed, or purged.
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(Untold::by(&stream.cached_info().config.name, &error)),
    }
}

pub(crate) fn shorter(now: &Mark, least: u64) -> Option<String> {
    (now.last_sequence < least)
        .then(|| format!("it ends at {}, and {least} had been acknowledged", now.last_sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_its_column() {
        let mark = Mark {
            created: Some(OffsetDateTime::UNIX_EPOCH + time::Duration::nanoseconds(123_456_789)),
            last_sequence: 7,
            subjects: vec!["orders.>".into()],
            ..Mark::of_acknowledgements()
        };
        let text = serde_json::to_string(&mark).unwrap();
        assert_eq!(serde_json::from_str::<Mark>(&text).unwrap(), mark, "{text}");
    }
}
