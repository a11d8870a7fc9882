//! Asks the JetStream API about streams: which stream takes a subject, what state a stream is in, and what it has lost.

mod mark;

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{
    ContextBuilder, GetStreamByNameError, GetStreamByNameErrorKind, GetStreamError,
    GetStreamErrorKind,
};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::Stream;
use pillarbox_store::full_text;
use pillarbox_store::limit::within;

pub use mark::{StreamMark, StreamMarks};
pub(crate) use mark::{lost, message_of, shorter};

/// What error texts call the broker.
pub(crate) const BROKER: &str = "the broker";
/// The time limit for one answer of the JetStream API. The context has a limit too, but it does not apply while a
/// request waits for a connection, possibly for hours.
pub(crate) const API: Duration = Duration::from_secs(30);

/// The API did not return the state of a stream.
#[derive(Debug, thiserror::Error)]
#[error("stream {stream} does not tell how it stands: {why}")]
pub(crate) struct Untold {
    stream: String,
    why: String,
}

impl Untold {
    fn by(stream: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { stream: stream.to_owned(), why: full_text(error) }
    }
}

/// Asks the API about streams of its own domain and of others.
#[derive(Clone, Debug)]
pub(crate) struct Api(Context);

impl Api {
    pub(crate) fn new(context: Context) -> Self {
        Self(context)
    }

    /// The present state of a stream. `None`: the API does not show a stream of this name.
    pub(crate) async fn stand(&self, name: &str) -> Result<Option<(Stream, StreamMark)>, Untold> {
        let asked = within(API, BROKER, self.stream(name)).await;
        let stream = match asked.map_err(|late| Untold::by(name, &late))? {
            Ok(stream) => stream,
            // Another domain may refuse this user, or its answer may not get through.
            Err(_) if name.contains('.') => return Ok(None),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(said) if said.code() == 404 => return Ok(None),
                _ => return Err(Untold::by(name, &error)),
            },
        };
        let info = stream.cached_info();
        let mut mark = StreamMark {
            created: Some(info.created),
            last_sequence: info.state.last_sequence,
            last_time: (info.state.messages > 0).then_some(info.state.last_timestamp),
            shown: true,
            ..StreamMark::of_acknowledgements()
        };
        mark.takes(&info.config.subjects);
        Ok(Some((stream, mark)))
    }

    /// Another stream that takes one of these subjects, which may contain wildcards.
    pub(crate) async fn successor(
        &self,
        name: &str,
        subjects: &[String],
    ) -> Result<Option<String>, Untold> {
        for subject in subjects {
            let asked = within(API, BROKER, self.0.stream_by_subject(subject)).await;
            match asked.map_err(|late| Untold::by(name, &late))? {
                Ok(found) if found != name => return Ok(Some(found)),
                Ok(_) => {}
                Err(error) if is_none(&error) => {}
                Err(error) => return Err(Untold::by(name, &error)),
            }
        }
        Ok(None)
    }

    /// The message at this sequence of a stream. `None`: the message no longer exists, or the API did not answer.
    pub(crate) async fn message(&self, name: &str, sequence: u64) -> Option<StreamMessage> {
        let (context, stream) = match name.split_once('.') {
            None => (self.0.clone(), name),
            Some((domain, stream)) => (self.of(domain), stream),
        };
        let stream = context.get_stream_no_info(stream).await.ok()?;
        stream.get_raw_message(sequence).await.ok()
    }

    /// Whether the API shows the stream. Without an answer, the stream is assumed to exist.
    pub(crate) async fn shows(&self, name: &str) -> bool {
        !matches!(self.stand(name).await, Ok(None))
    }

    /// A stream by its name in a mark, which begins with the domain if that is not the API's domain.
    pub(crate) async fn stream(&self, name: &str) -> Result<Stream, GetStreamError> {
        match name.split_once('.') {
            None => self.0.get_stream(name).await,
            Some((domain, stream)) => self.of(domain).get_stream(stream).await,
        }
    }

    fn of(&self, domain: &str) -> Context {
        ContextBuilder::new().timeout(Duration::from_secs(2)).domain(domain).build(self.0.client())
    }
}

/// Whether the server itself answered that no stream takes the subject.
pub(crate) fn is_none(error: &GetStreamByNameError) -> bool {
    error.kind() == GetStreamByNameErrorKind::NotFound
}

/// Whether one of a stream's subjects, which may contain wildcards, matches this subject.
pub(crate) fn takes(patterns: &[String], subject: &str) -> bool {
    patterns.iter().any(|pattern| {
        let mut words = subject.split('.');
        for wanted in pattern.split('.') {
            match (wanted, words.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(word)) if wanted == word => {}
                _ => return false,
            }
        }
        words.next().is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_match_as_the_server_matches_them() {
        for (pattern, subject, taken) in [
            ("orders.>", "orders.placed", true),
            ("orders.>", "orders.placed.eu", true),
            ("orders.>", "orders", false),
            ("orders.*", "orders.placed", true),
            ("orders.*", "orders.placed.eu", false),
            ("*.placed", "orders.placed", true),
            ("orders", "orders", true),
            ("orders", "orders.placed", false),
            (">", "a", true),
        ] {
            assert_eq!(takes(&[pattern.to_owned()], subject), taken, "{pattern} {subject}");
        }
        assert!(!takes(&[], "a"));
    }
}
