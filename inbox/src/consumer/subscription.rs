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
//!                  first message                 number 1              gap, or another pin
//!   standing by ──────────────────► resetting ────────────► in order ──────────────────────► resetting
//!     │  ▲  ▲                           │
//!     └──┘  └───────────────────────────┘ nothing comes
//!     looks
//! ```
//!
//! The pin's id changes whenever another process may have been active in between, whose own reset would have
//! started the numbers anew.
//!
//! Whoever stands by looks from time to time whether nobody is active while something is unacknowledged, and has
//! that delivered again. Without it, what a dead process held would be waited for until `ack_wait` is over, and
//! everything else with it once it held all that it may.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::consumer::{Consumer, Info, pull};
use async_nats::jetstream::stream::Stream;
use async_nats::{header, jetstream};
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout_at};

use super::ConsumerConfig;
use super::durable::GROUP;
use super::status::Reporter;
use crate::error::full_text;

/// How long the first message may take after a reset, before another reset.
const FIRST_AFTER_RESET: Duration = Duration::from_secs(5);

pub(super) struct Subscription {
    stream: Stream,
    consumer: String,
    messages: pull::Stream,
    state: State,
    /// The pin under which the consumer was reset last.
    pin: Option<String>,
    /// The last sequence of the stream that had been delivered when this process became the active one.
    delivered_before: u64,
    look_every: Duration,
    connection: Connection,
    /// How many messages may be taken after the connection was lost.
    left: usize,
    reporter: Reporter,
}

/// A message, and whether it was delivered before, to this process or another.
pub(super) struct Arrival {
    pub(super) message: jetstream::Message,
    pub(super) again: bool,
}

enum State {
    /// Takes what comes: without an order, or on a server that cannot reset.
    Unordered,
    /// Nothing has come yet.
    StandingBy { look_at: Instant },
    /// The server is being asked, or told to start from the ack floor.
    Asking(BoxFuture<'static, Result<Answer, Interrupted>>),
    /// It was told; messages from before are still on their way.
    Resetting { until: Instant },
    /// The next message bears this number.
    InOrder { next: u64 },
}

struct Answer {
    /// The last sequence of the stream that other processes had got.
    delivered_before: u64,
    /// Whether this process is the active one.
    active: bool,
}

/// How often a connection is looked at.
const LOOK_AT_CONNECTION: Duration = Duration::from_millis(250);

const LOST: &str = "the connection to the broker was lost";

/// The connection that a client had at a moment. Over another one a message can be of another life of the stream, though
/// the subscription goes on as if nothing had happened.
#[derive(Debug)]
struct Connection {
    client: async_nats::Client,
    number: u64,
}

impl Connection {
    fn now(client: &async_nats::Client) -> Self {
        Self { client: client.clone(), number: number_of(client) }
    }

    fn is_lost(&self) -> bool {
        number_of(&self.client) != self.number
    }

    /// Comes back when the connection is another one. Safe to cancel.
    async fn lost(&self) {
        while !self.is_lost() {
            sleep(LOOK_AT_CONNECTION).await;
        }
    }
}

/// The connections that a client has had.
fn number_of(client: &async_nats::Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// The subscription cannot go on; another must be opened.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Interrupted(String);

impl Subscription {
    pub(super) async fn open(
        client: &async_nats::Client,
        stream: &Stream,
        consumer: &Consumer<pull::Config>,
        config: &ConsumerConfig,
        ordered: bool,
        pinned: bool,
        reporter: Reporter,
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
        let connection = Connection::now(client);
        let messages = messages.messages().await.map_err(|error| Interrupted(full_text(&error)))?;
        let state =
            if ordered { State::StandingBy { look_at: Instant::now() } } else { State::Unordered };
        // With partitions it is not the pin that says which process is active.
        if config.several().is_none() {
            reporter.connected(pinned, active_pin(consumer.cached_info()));
        }
        Ok(Self {
            stream: stream.clone(),
            consumer: consumer.cached_info().name.clone(),
            messages,
            state,
            pin: None,
            delivered_before: 0,
            look_every: config.takeover() / 3,
            connection,
            left: config.prefetch,
            reporter,
        })
    }

    /// What this process was pinned as last.
    pub(super) fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    /// The next message. Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<Arrival, Interrupted> {
        loop {
            let far = Instant::now() + Duration::from_secs(3600);
            let until = match &mut self.state {
                State::Asking(asked) => {
                    let Answer { delivered_before, active } = asked.await?;
                    self.delivered_before = self.delivered_before.max(delivered_before);
                    let now = Instant::now();
                    self.state = match active {
                        true => State::Resetting { until: now + FIRST_AFTER_RESET },
                        false => State::StandingBy { look_at: now + self.look_every },
                    };
                    continue;
                }
                State::StandingBy { look_at: until } | State::Resetting { until } => *until,
                _ => far,
            };
            let message = tokio::select! {
                biased;
                message = timeout_at(until, self.messages.next()) => message,
                () = self.connection.lost() => return Err(Interrupted(LOST.into())),
            };
            if self.connection.is_lost() {
                // With an order everything comes again at once, and in order. Without, it would only after `ack_wait`:
                // so what is here already is taken, as of before the interruption.
                let taken = matches!(self.state, State::Unordered) && self.left > 0;
                match message {
                    Ok(Some(Ok(message))) if taken => {
                        self.left -= 1;
                        let again = message.info().is_ok_and(|info| info.delivered > 1);
                        return Ok(Arrival { message, again });
                    }
                    _ => return Err(Interrupted(LOST.into())),
                }
            }
            let message = match message {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(Interrupted(full_text(&error))),
                Ok(None) => return Err(Interrupted("the subscription ended".into())),
                Err(_) => {
                    // After a reset: nothing is left, or it was lost, or another process has it.
                    self.look();
                    continue;
                }
            };
            let Ok(info) = message.info() else {
                continue;
            };
            let number = info.consumer_sequence;
            let again = info.delivered > 1 || info.stream_sequence <= self.delivered_before;
            match &mut self.state {
                State::Unordered => {
                    let pin = pin(&message);
                    if pin != self.pin {
                        self.pin.clone_from(&pin);
                        self.reporter.active(pin);
                    }
                    return Ok(Arrival { message, again });
                }
                State::StandingBy { .. } => self.take_over(&message),
                _ if pin(&message) != self.pin => self.take_over(&message),
                State::InOrder { next } if number == *next => {
                    *next += 1;
                    return Ok(Arrival { message, again });
                }
                State::Resetting { .. } if number == 1 => {
                    self.state = State::InOrder { next: 2 };
                    return Ok(Arrival { message, again });
                }
                State::Resetting { .. } | State::Asking(_) => {}
                State::InOrder { next } => {
                    tracing::debug!(
                        consumer = self.consumer,
                        expected = *next,
                        number,
                        "a gap; starting from the ack floor"
                    );
                    self.reset();
                }
            }
        }
    }

    /// This process is the active one now.
    fn take_over(&mut self, message: &jetstream::Message) {
        self.pin = pin(message);
        self.reporter.active(self.pin.clone());
        tracing::debug!(
            consumer = self.consumer,
            pin = self.pin,
            "active; starting from the ack floor"
        );
        // A first delivery: what is before it in the stream went to others.
        let known = match message.info() {
            Ok(info) if info.delivered == 1 => Some(info.stream_sequence.saturating_sub(1)),
            _ => None,
        };
        self.ask(|stream, consumer| async move {
            let delivered_before = match known {
                Some(known) => known,
                None => info(&stream, &consumer).await?.delivered.stream_sequence,
            };
            reset(&stream, &consumer).await?;
            Ok(Answer { delivered_before, active: true })
        });
    }

    fn reset(&mut self) {
        self.ask(|stream, consumer| async move {
            reset(&stream, &consumer).await?;
            Ok(Answer { delivered_before: 0, active: true })
        });
    }

    /// Has delivered again what nobody works on.
    fn look(&mut self) {
        let mine = self.pin.clone();
        self.ask(|stream, consumer| async move {
            let info = info(&stream, &consumer).await?;
            let pin = active_pin(&info);
            let nobody = pin.is_none();
            if info.num_ack_pending > 0 && (nobody || pin == mine) {
                tracing::debug!(consumer, "nobody is active; having the consumer reset");
                reset(&stream, &consumer).await?;
            }
            let delivered_before = if nobody { info.delivered.stream_sequence } else { 0 };
            Ok(Answer { delivered_before, active: false })
        });
    }

    fn ask<F>(&mut self, question: impl FnOnce(Stream, String) -> F)
    where
        F: Future<Output = Result<Answer, Interrupted>> + Send + 'static,
    {
        self.state = State::Asking(Box::pin(question(self.stream.clone(), self.consumer.clone())));
    }
}

async fn info(stream: &Stream, consumer: &str) -> Result<Info, Interrupted> {
    stream.consumer_info(consumer).await.map_err(|error| {
        Interrupted(format!("no answer about the consumer: {}", full_text(&error)))
    })
}

/// The pin of the active process, if there is one.
pub(super) fn active_pin(info: &Info) -> Option<String> {
    info.priority_groups.iter().find_map(|group| group.pinned_client_id.clone())
}

async fn reset(stream: &Stream, consumer: &str) -> Result<(), Interrupted> {
    let reset = stream.reset_consumer(consumer, None).await;
    reset.map(drop).map_err(|error| {
        Interrupted(format!("the server did not reset the consumer: {}", full_text(&error)))
    })
}

fn pin(message: &jetstream::Message) -> Option<String> {
    let headers = message.headers.as_ref()?;
    Some(headers.get_last(header::NATS_PIN_ID)?.as_str().to_owned())
}
