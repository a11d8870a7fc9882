//! How a stream stood, and what it has lost since.

use std::collections::BTreeMap;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{ContextBuilder, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use pillarbox_store::limit::within;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::broker::{API, BROKER};
use crate::error::full_text;
use crate::sink::SinkError;

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
    pub(super) fn of_acknowledgements() -> Self {
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
    pub(super) fn acknowledged<'a>(&mut self, subjects: impl IntoIterator<Item = &'a String>) {
        for subject in subjects {
            if !self.is_taken(subject) {
                self.takes([subject]);
            }
        }
    }

    /// Whether the stream takes, took, or has acknowledged this subject.
    pub fn is_taken(&self, subject: &str) -> bool {
        crate::sink::streams::takes(&self.subjects, subject)
    }

    /// Adds subjects. None is taken away: what is in the stream stays there when its subjects change.
    pub(super) fn takes<'a>(&mut self, subjects: impl IntoIterator<Item = &'a String>) {
        for subject in subjects {
            if self.subjects.len() < SUBJECTS && !self.subjects.contains(subject) {
                self.subjects.push(subject.clone());
            }
        }
    }
}

/// How the streams stood, by name.
pub type Marks = BTreeMap<String, Mark>;

/// The API's answers about streams of its own domain and of others.
#[derive(Clone, Debug)]
pub struct Api(pub Context);

impl Api {
    /// How a stream stands now. `None` if the API does not show a stream of this name.
    pub(super) async fn stand(&self, name: &str) -> Result<Option<(Stream, Mark)>, SinkError> {
        let asked = within(API, BROKER, self.stream(name)).await;
        let stream = match asked.map_err(|late| unavailable(name, &late))? {
            Ok(stream) => stream,
            // Another domain may not let this user ask, and its answer may not find the way.
            Err(_) if name.contains('.') => return Ok(None),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(said) if said.code() == 404 => return Ok(None),
                _ => return Err(unavailable(name, &error)),
            },
        };
        let info = stream.cached_info();
        let mut mark = Mark {
            created: Some(info.created),
            last_sequence: info.state.last_sequence,
            last_time: (info.state.messages > 0).then_some(info.state.last_timestamp),
            shown: true,
            ..Mark::of_acknowledgements()
        };
        mark.takes(&info.config.subjects);
        Ok(Some((stream, mark)))
    }

    /// Another stream than this one that takes one of these subjects, which may hold wildcards.
    pub(super) async fn successor(
        &self,
        name: &str,
        subjects: &[String],
    ) -> Result<Option<String>, SinkError> {
        for subject in subjects {
            let asked = within(API, BROKER, self.0.stream_by_subject(subject)).await;
            match asked.map_err(|late| unavailable(name, &late))? {
                Ok(found) if found != name => return Ok(Some(found)),
                Ok(_) => {}
                Err(error) if crate::sink::streams::is_none(&error) => {}
                Err(error) => return Err(unavailable(name, &error)),
            }
        }
        Ok(None)
    }

    /// The message that a stream has at this sequence. `None` if there is none any more, or the API does not tell.
    pub(crate) async fn message(&self, name: &str, sequence: u64) -> Option<StreamMessage> {
        let (context, stream) = match name.split_once('.') {
            None => (self.0.clone(), name),
            Some((domain, stream)) => (self.of(domain), stream),
        };
        let stream = context.get_stream_no_info(stream).await.ok()?;
        stream.get_raw_message(sequence).await.ok()
    }

    /// Whether the API shows the stream. An API that does not answer says nothing against it.
    pub(crate) async fn shows(&self, name: &str) -> bool {
        !matches!(self.stand(name).await, Ok(None))
    }

    /// A stream by the name that it has in a mark: with its domain before it, if that is another one.
    pub async fn stream(&self, name: &str) -> Result<Stream, GetStreamError> {
        match name.split_once('.') {
            None => self.0.get_stream(name).await,
            Some((domain, stream)) => self.of(domain).get_stream(stream).await,
        }
    }

    fn of(&self, domain: &str) -> Context {
        ContextBuilder::new()
            .timeout(std::time::Duration::from_secs(2))
            .domain(domain)
            .build(self.0.client())
    }
}

/// What the stream has lost since `before`, if anything.
pub(super) async fn lost(
    stream: &Stream,
    now: &Mark,
    before: &Mark,
) -> Result<Option<String>, SinkError> {
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
    match asked.map_err(|late| unavailable(&stream.cached_info().config.name, &late))? {
        Ok(message) if message.time == stored => Ok(None),
        Ok(_) => Ok(Some(format!("its message {} is another one", before.last_sequence))),
        // Past the stream's own limits, or consumed, or purged.
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(unavailable(&stream.cached_info().config.name, &error)),
    }
}

pub(super) fn shorter(now: &Mark, least: u64) -> Option<String> {
    (now.last_sequence < least)
        .then(|| format!("it ends at {}, and {least} had been acknowledged", now.last_sequence))
}

fn unavailable(name: &str, error: &(dyn std::error::Error + 'static)) -> SinkError {
    SinkError::Unavailable(format!(
        "stream {name} does not tell how it stands: {}",
        full_text(error)
    ))
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
