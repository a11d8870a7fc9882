//! The state of a stream at one moment, and what the stream has lost since.

use std::collections::BTreeMap;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use pillarbox_store::limit::within;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{API, BROKER, Untold, takes};

/// At most this many subjects of a stream are remembered.
const SUBJECTS: usize = 64;

/// The state of a stream at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamMark {
    /// When the stream was created. `None`: the API has never shown it, and only acknowledgements tell of it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub created: Option<OffsetDateTime>,
    /// The last sequence of the stream. If the API does not show the stream, the last sequence that it acknowledged.
    pub last_sequence: u64,
    /// When the message at that sequence was stored. `None`: the stream held no message.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_time: Option<OffsetDateTime>,
    /// The subjects that the stream takes or took, or some that it acknowledged.
    #[serde(default)]
    pub subjects: Vec<String>,
    /// When the stream last acknowledged something to the relay, by the relay's clock.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub acknowledged_at: Option<OffsetDateTime>,
    /// Whether the API shows the stream. If not, it does not exist or is in another domain or account, and a loss there
    /// goes unnoticed.
    pub shown: bool,
}

impl StreamMark {
    /// The mark of a stream that is known only from acknowledgements.
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

    /// Adds subjects that the stream acknowledged although its configuration does not list them, for example through a
    /// subject mapping of the account.
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

    /// Adds subjects. None is removed, because messages stay in a stream when its subjects change.
    pub(crate) fn takes<'a>(&mut self, subjects: impl IntoIterator<Item = &'a String>) {
        for subject in subjects {
            if self.subjects.len() < SUBJECTS && !self.subjects.contains(subject) {
                self.subjects.push(subject.clone());
            }
        }
    }
}

/// The marks of several streams, by name.
pub type StreamMarks = BTreeMap<String, StreamMark>;

/// What the stream has lost since `before`. `None`: nothing.
pub(crate) async fn lost(
    stream: &Stream,
    now: &StreamMark,
    before: &StreamMark,
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
    match message_of(stream, before.last_sequence).await? {
        Some(message) if message.time != stored => {
            Ok(Some(format!("its message {} is another one", before.last_sequence)))
        }
        _ => Ok(None),
    }
}

/// The message at this sequence. `None`: it exceeded a limit of the stream, was consumed, or was purged.
pub(crate) async fn message_of(
    stream: &Stream,
    sequence: u64,
) -> Result<Option<StreamMessage>, Untold> {
    let asked = within(API, BROKER, stream.get_raw_message(sequence)).await;
    match asked.map_err(|late| Untold::by(&stream.cached_info().config.name, &late))? {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(Untold::by(&stream.cached_info().config.name, &error)),
    }
}

pub(crate) fn shorter(now: &StreamMark, least: u64) -> Option<String> {
    (now.last_sequence < least)
        .then(|| format!("it ends at {}, and {least} had been acknowledged", now.last_sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_its_column() {
        let mark = StreamMark {
            created: Some(OffsetDateTime::UNIX_EPOCH + time::Duration::nanoseconds(123_456_789)),
            last_sequence: 7,
            subjects: vec!["orders.>".into()],
            ..StreamMark::of_acknowledgements()
        };
        let text = serde_json::to_string(&mark).unwrap();
        assert_eq!(serde_json::from_str::<StreamMark>(&text).unwrap(), mark, "{text}");
    }
}
