//! Finds the stream that takes a subject, and whether it takes fast-ingest batches.

use std::collections::HashMap;
use std::sync::Arc;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Config;
use pillarbox_store::full_text;
use pillarbox_store::limit::within;
use uuid::Uuid;

use super::SinkError;
use crate::message::Message;
use crate::streams::{API, BROKER, is_none, takes};

/// A stream that takes some of the relay's subjects.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) name: Arc<str>,
    subjects: Vec<String>,
    /// Whether it takes fast-ingest batches.
    pub(super) allow_batched: bool,
}

/// The streams known so far. The server is asked once for each, and again after [`forget`](Self::forget).
#[derive(Clone, Debug)]
pub(crate) struct Targets {
    context: Context,
    targets: Vec<Target>,
    /// The last subjects looked up. At most [`RECENT`], because topics may contain ids.
    recent: HashMap<String, usize>,
    /// The streams that were logged, and whether they take batches. So an outage does not repeat these lines.
    said: HashMap<String, bool>,
}

const RECENT: usize = 1024;

impl Targets {
    /// Knows no stream yet.
    pub(crate) fn new(context: Context) -> Self {
        Self { context, targets: Vec::new(), recent: HashMap::new(), said: HashMap::new() }
    }

    /// The stream that takes this message.
    pub(super) async fn target(&mut self, message: &Message) -> Result<&Target, SinkError> {
        let subject = message.subject.as_str();
        let index = match self.recent.get(subject) {
            Some(index) => *index,
            None => {
                let known = self.targets.iter().position(|target| takes(&target.subjects, subject));
                let index = match known {
                    Some(index) => index,
                    None => self.ask(message).await?,
                };
                if self.recent.len() >= RECENT {
                    self.recent.clear();
                }
                self.recent.insert(subject.to_owned(), index);
                index
            }
        };
        Ok(&self.targets[index])
    }

    /// Forgets everything, because storing failed and the streams may have changed.
    pub(crate) fn forget(&mut self) {
        self.targets.clear();
        self.recent.clear();
    }

    async fn ask(&mut self, message: &Message) -> Result<usize, SinkError> {
        let Message { position, event_id, subject, .. } = message;
        let name = stream_of(&self.context, *position, *event_id, subject).await?;
        let stream = within(API, BROKER, self.context.get_stream(&name)).await;
        let stream = stream.map_err(|late| unavailable(&late))?;
        let stream = stream.map_err(|error| unavailable(&error))?;
        let Config { subjects, allow_batch_publish, .. } = &stream.cached_info().config;
        if self.said.insert(name.clone(), *allow_batch_publish) != Some(*allow_batch_publish) {
            let sink = if *allow_batch_publish { "fast ingest" } else { "keyed window" };
            tracing::info!(stream = name, sink, "shipping to stream");
        }
        let mut subjects = subjects.clone();
        if !takes(&subjects, subject) {
            // The stream takes the subject through a mapping, which its configuration does not show.
            subjects.push(subject.to_string());
        }
        self.targets.push(Target {
            name: name.into(),
            subjects,
            allow_batched: *allow_batch_publish,
        });
        Ok(self.targets.len() - 1)
    }
}

/// Asks the server which stream takes a subject. Only the server's answer that there is none becomes
/// [`SinkError::NoStream`].
pub(crate) async fn stream_of(
    context: &Context,
    position: i64,
    event_id: Uuid,
    subject: &str,
) -> Result<String, SinkError> {
    let asked = within(API, BROKER, context.stream_by_subject(subject)).await;
    match asked.map_err(|late| unavailable(&late))? {
        Ok(name) => Ok(name),
        Err(error) if is_none(&error) => Err(SinkError::NoStream {
            position,
            event_id,
            subject: subject.to_owned(),
            heard: false,
        }),
        Err(error) => Err(unavailable(&error)),
    }
}

/// Whether the stream is configured to acknowledge nothing. `false` if that is not known.
pub(super) async fn acknowledges_nothing(context: &Context, name: &str) -> bool {
    let stream = within(API, BROKER, context.get_stream(name)).await;
    matches!(stream, Ok(Ok(stream)) if stream.cached_info().config.no_ack)
}

fn unavailable(error: &(dyn std::error::Error + 'static)) -> SinkError {
    SinkError::Unavailable(full_text(error))
}
