//! Messages of one durable consumer, without gaps.
//!
//! Order per key takes more than reading a stream in order. A delivery can be lost on the way (a cut
//! connection), and a process can die with events it has not acknowledged; the server delivers those again
//! only after `ack_wait`, *behind* later ones of the same key. So, with [`Order::Key`](super::Order::Key):
//!
//! - the durable consumer is pinned: the server delivers to one process at a time (nats-server 2.11);
//! - whoever becomes the active process, and whoever sees a gap in the consumer's own sequence, has the server
//!   reset the consumer to its ack floor (`$JS.API.CONSUMER.RESET`, nats-server 2.14), which delivers
//!   everything unacknowledged again at once, in the order of the stream, numbered from 1;
//! - what is on its way from before the reset is dropped. What was handled already is skipped by the inbox.
//!
//! ```text
//!   standing by ── first message ──► resetting ── number 1 ──► in order ── gap ──► resetting
//! ```

use std::time::Duration;

use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::jetstream::{self, Message};
use futures::StreamExt;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::ConsumerConfig;
use super::durable::GROUP;
use crate::error::full_text;

/// How long the first message may take after a reset, before another reset.
const FIRST_AFTER_RESET: Duration = Duration::from_secs(5);

pub(super) struct Subscription {
    jetstream: jetstream::Context,
    stream: String,
    consumer: String,
    messages: pull::Stream,
    state: State,
}

enum State {
    /// Takes what comes: without an order, or on a server that cannot reset.
    Unordered,
    /// Nothing has come yet.
    StandingBy,
    /// The server must be told to start from the ack floor.
    ResetDue,
    /// It was told; messages from before are still on their way.
    Resetting { until: Instant },
    /// The next message bears this number.
    InOrder { next: u64 },
}

/// The subscription cannot go on; another must be opened.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Interrupted(String);

impl Subscription {
    pub(super) async fn open(
        jetstream: jetstream::Context,
        consumer: &Consumer<pull::Config>,
        config: &ConsumerConfig,
        ordered: bool,
        pinned: bool,
    ) -> Result<Self, Interrupted> {
        // A pin is lost unless pulls come more often than it lasts.
        let expires = if pinned { config.takeover() / 3 } else { Duration::from_secs(10) };
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(config.prefetch)
            .expires(expires)
            .heartbeat((expires / 3).min(Duration::from_secs(5)));
        if pinned {
            messages = messages.group(GROUP);
        }
        let messages = messages.messages().await.map_err(|error| Interrupted(full_text(&error)))?;
        let state = if ordered { State::StandingBy } else { State::Unordered };
        Ok(Self {
            jetstream,
            stream: config.stream.clone(),
            consumer: config.name.clone(),
            messages,
            state,
        })
    }

    /// The next message. Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<Message, Interrupted> {
        loop {
            let far = Instant::now() + Duration::from_secs(3600);
            let until = match &self.state {
                State::ResetDue => {
                    self.reset().await?;
                    continue;
                }
                State::Resetting { until } => *until,
                _ => far,
            };
            let message = match timeout_at(until, self.messages.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(Interrupted(full_text(&error))),
                Ok(None) => return Err(Interrupted("the subscription ended".into())),
                Err(_) => {
                    // Nothing may be left to deliver; if something was lost, another reset brings it.
                    if matches!(self.state, State::Resetting { .. }) {
                        self.state = State::ResetDue;
                    }
                    continue;
                }
            };
            let Ok(number) = message.info().map(|info| info.consumer_sequence) else {
                continue;
            };
            match &mut self.state {
                State::Unordered => return Ok(message),
                State::InOrder { next } if number == *next => {
                    *next += 1;
                    return Ok(message);
                }
                State::Resetting { .. } if number == 1 => {
                    self.state = State::InOrder { next: 2 };
                    return Ok(message);
                }
                State::Resetting { .. } => {}
                State::StandingBy | State::ResetDue => self.state = State::ResetDue,
                State::InOrder { next } => {
                    tracing::debug!(
                        consumer = self.consumer,
                        expected = *next,
                        number,
                        "a gap; starting from the ack floor"
                    );
                    self.state = State::ResetDue;
                }
            }
        }
    }

    async fn reset(&mut self) -> Result<(), Interrupted> {
        #[derive(Deserialize)]
        struct Answer {
            error: Option<jetstream::Error>,
        }
        let subject = format!("CONSUMER.RESET.{}.{}", self.stream, self.consumer);
        let answer: Answer =
            self.jetstream.request(subject, &serde_json::json!({})).await.map_err(|error| {
                Interrupted(format!("no answer to a reset: {}", full_text(&error)))
            })?;
        match answer.error {
            None => {
                self.state = State::Resetting { until: Instant::now() + FIRST_AFTER_RESET };
                Ok(())
            }
            Some(error) => Err(Interrupted(format!("the server refused a reset: {error}"))),
        }
    }
}
