//! Handles one event, and says what is to become of its message.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::FutureExt;
use pillarbox_event::RawEvent;
use std::panic::AssertUnwindSafe;
use tower_service::Service;

use super::ConsumerConfig;
use super::incoming::Content;
use crate::delivery::{Delivery, Outcome};
use crate::error::{InboxError, full_text};
use crate::failure::{Fault, HandlerError};
use crate::store::{Burial, Store};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is to become of a message.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Handled, or found to be a duplicate: acknowledge it.
    Done,
    /// Given up: it shall never come again.
    Dead,
    /// Try again after this long.
    Retry(Duration),
    /// Nothing can be handled now.
    Environment(String),
}

/// What all events of a consumer share.
#[derive(Clone)]
pub(super) struct Worker<S> {
    pub(super) service: S,
    pub(super) rules: Rules,
}

/// What follows from a failure.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) store: Store,
    pub(super) config: Arc<ConsumerConfig>,
}

impl<S> Worker<S>
where
    S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send> + Send,
{
    pub(super) async fn handle(mut self, content: Arc<Content>) -> Verdict {
        let name = &self.rules.config.name;
        let event = match &*content {
            Content::Event(event) => event,
            Content::Undecodable { id, error, .. } => {
                tracing::error!(
                    consumer = name,
                    event_id = id,
                    error,
                    "not an event; a dead letter"
                );
                return self.rules.bury(&content, id, "undecodable", error, 0).await;
            }
        };
        match call(&mut self.service, event, self.rules.config.handler_timeout()).await {
            Ok(outcome) => {
                if outcome == Outcome::Duplicate {
                    tracing::debug!(consumer = name, event_id = %event.id(), "skipped a duplicate");
                }
                Verdict::Done
            }
            Err(error) => self.rules.failed(event, &error).await,
        }
    }
}

/// Calls the service. Its panic, and its taking too long, are failures.
async fn call<S>(
    service: &mut S,
    event: &Arc<RawEvent>,
    limit: Duration,
) -> Result<Outcome, InboxError>
where
    S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send> + Send,
{
    let delivery = Delivery { event: event.clone() };
    let called = AssertUnwindSafe(async move {
        std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(delivery).await
    })
    .catch_unwind();
    let error: BoxError = match tokio::time::timeout(limit, called).await {
        Ok(Ok(Ok(outcome))) => return Ok(outcome),
        Ok(Ok(Err(error))) => error.into(),
        Ok(Err(_)) => "the service panicked".into(),
        Err(_) => format!("the handler took longer than {limit:?}").into(),
    };
    Err(match error.downcast::<InboxError>() {
        Ok(error) => *error,
        Err(error) => InboxError::handler(HandlerError::of_layer(error)),
    })
}

impl Rules {
    async fn failed(&self, event: &Arc<RawEvent>, error: &InboxError) -> Verdict {
        let (id, text) = (event.id().as_str(), full_text(error));
        let content = Content::Event(event.clone());
        match error.fault() {
            Fault::Environment => Verdict::Environment(text),
            Fault::Conflict => Verdict::Retry(self.backoff(1)),
            Fault::Permanent => {
                tracing::error!(
                    consumer = self.config.name,
                    event_id = id,
                    error = text,
                    "a permanent failure; a dead letter"
                );
                self.bury(&content, id, "permanent", &text, 1).await
            }
            Fault::Transient => {
                let attempts = match self.store.record_failure(id, &text).await {
                    Ok(attempts) => attempts,
                    Err(error) => return Verdict::Environment(full_text(&error)),
                };
                if attempts >= self.config.max_attempts {
                    tracing::error!(
                        consumer = self.config.name,
                        event_id = id,
                        attempts,
                        error = text,
                        "the last attempt failed; a dead letter"
                    );
                    return self.bury(&content, id, "attempts", &text, attempts).await;
                }
                let wait = error.retry_after().unwrap_or_else(|| self.backoff(attempts));
                tracing::warn!(
                    consumer = self.config.name,
                    event_id = id,
                    attempts,
                    error = text,
                    ?wait,
                    "an attempt failed"
                );
                Verdict::Retry(wait)
            }
        }
    }

    async fn bury(
        &self,
        content: &Content,
        id: &str,
        reason: &str,
        error: &str,
        attempts: u32,
    ) -> Verdict {
        let burial = Burial { event_id: id, event: content.as_stored(), reason, error, attempts };
        match self.store.bury(burial).await {
            Ok(_) => Verdict::Dead,
            Err(error) => Verdict::Environment(full_text(&error)),
        }
    }

    /// The wait after this many failed attempts.
    fn backoff(&self, attempts: u32) -> Duration {
        let most = Duration::from_millis(self.config.max_backoff_ms);
        ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(self.config.backoff_ms))
            .with_max_delay(most)
            .with_jitter()
            .without_max_times()
            .build()
            .nth(attempts.saturating_sub(1).min(64) as usize)
            .unwrap_or(most)
    }
}
