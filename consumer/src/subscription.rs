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

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{Consumer, Info, pull};
use async_nats::jetstream::stream::Stream;
use async_nats::{header, jetstream};
use futures::StreamExt;
use futures::future::BoxFuture;
use pillarbox_store::full_text;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use super::config::ConsumerConfig;
use super::durable::{Durable, GROUP};
use super::interrupted::Interrupted;
use super::one_by_one::{OneByOne, Pull};
use super::reader::{Connection, Reader};
use super::status::Reporter;
use super::unreadable::Unreadable;
use crate::place::Place;

/// How long the first message may take after a reset, before another reset.
const FIRST_AFTER_RESET: Duration = Duration::from_secs(5);

/// How often what was lost may be delivered again without anything new arriving.
const MOST_FRUITLESS: u32 = 2;

/// How often it is looked whether the ack floor has passed what cannot be parsed.
const LOOK_AT_FLOOR: Duration = Duration::from_millis(500);

pub(super) struct Subscription {
    answering: Context,
    stream: Stream,
    consumer: String,
    source: Source,
    care: Option<Care>,
    unreadable: Unreadable,
    state: State,
    /// The pin under which the consumer was reset last.
    pin: Option<String>,
    /// The last sequence of the stream that had been delivered when this process became the active one.
    delivered_before: u64,
    /// The largest sequence of the stream that has arrived.
    furthest: u64,
    /// How often the durable consumer was reset since then.
    fruitless: u32,
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
    /// Where the ack floor is, if that was asked.
    floor: Option<u64>,
    /// Whether what was delivered has to come again.
    was_reset: bool,
}

/// Where messages come from.
enum Source {
    Many(Box<pull::Stream>),
    OneByOne(Box<OneByOne>),
}

impl Source {
    async fn next(&mut self) -> Result<jetstream::Message, Interrupted> {
        match self {
            Self::Many(messages) => match messages.next().await {
                Some(Ok(message)) => Ok(message),
                Some(Err(error)) => Err(Interrupted::new(full_text(&error))),
                None => Err(Interrupted::over()),
            },
            Self::OneByOne(one_by_one) => one_by_one.next().await,
        }
    }
}

/// What it takes to read past messages that cannot be parsed. See [`unreadable`](super::unreadable).
struct Care {
    reader: Reader,
    unreadable: Unreadable,
    durable: Durable,
    /// The sequences of those messages.
    sequences: BTreeSet<u64>,
    /// The sequence that came last, or the ack floor at the last reset.
    last: u64,
    /// When to look whether the ack floor has passed them.
    look_at: Instant,
    /// When the durable consumer was created.
    created: OffsetDateTime,
}

impl Care {
    /// How many of those messages lie between the last one that came and this one.
    fn skipped(&self, sequence: u64) -> u64 {
        match self.last < sequence {
            true => self.sequences.range(self.last + 1..sequence).count() as u64,
            false => 0,
        }
    }
}

/// What it takes to open a subscription.
pub(super) struct Opening<'a> {
    /// As the service's client reaches it.
    pub(super) stream: &'a Stream,
    /// As the client that reads reaches it.
    pub(super) consumer: &'a Consumer<pull::Config>,
    pub(super) reading: &'a Context,
    pub(super) reader: &'a Reader,
    /// Of the service's client: what is read is acknowledged through it.
    pub(super) answering: &'a Context,
    pub(super) durable: &'a Durable,
    pub(super) config: &'a ConsumerConfig,
    pub(super) ordered: bool,
    pub(super) pinned: bool,
    /// What this process was pinned as in its last subscription.
    pub(super) pin: Option<&'a str>,
    pub(super) unreadable: &'a Unreadable,
    /// The sequences above the ack floor that hold messages which cannot be parsed.
    pub(super) found: BTreeSet<u64>,
    pub(super) reporter: Reporter,
}

impl Subscription {
    pub(super) async fn open(opening: Opening<'_>) -> Result<Self, Interrupted> {
        let Opening { stream, consumer, config, pinned, reporter, .. } = opening;
        let info = consumer.cached_info();
        // A pin is lost unless pulls come more often than it lasts.
        let expires = if pinned { config.takeover() / 3 } else { Duration::from_secs(10) };
        let connection = Connection::of(&opening.reading.client());
        let (source, care) = if opening.found.is_empty() {
            let mut messages = consumer
                .stream()
                .max_messages_per_batch(config.prefetch)
                .expires(expires)
                .heartbeat((expires / 3).min(Duration::from_secs(5)));
            if pinned {
                messages = messages.group(GROUP);
            }
            let messages = messages.messages().await;
            let messages = messages.map_err(|error| Interrupted::new(full_text(&error)))?;
            (Source::Many(Box::new(messages)), None)
        } else {
            let name = &opening.durable.name;
            let pull =
                Pull { stream: config.stream.clone(), consumer: name.clone(), pinned, expires };
            let pin = opening.pin.map(str::to_owned);
            let one_by_one = OneByOne::open(opening.reading.clone(), pull, pin).await?;
            let care = Care {
                reader: opening.reader.clone(),
                unreadable: opening.unreadable.clone(),
                durable: opening.durable.clone(),
                sequences: opening.found,
                last: info.ack_floor.stream_sequence,
                look_at: Instant::now() + LOOK_AT_FLOOR,
                created: info.created,
            };
            (Source::OneByOne(Box::new(one_by_one)), Some(care))
        };
        let state = match opening.ordered {
            true => State::StandingBy { look_at: Instant::now() },
            false => State::Unordered,
        };
        // With partitions it is not the pin that says which process is active.
        if config.several().is_none() {
            reporter.connected(pinned, active_pin(info));
        }
        Ok(Self {
            answering: opening.answering.clone(),
            stream: stream.clone(),
            consumer: info.name.clone(),
            source,
            care,
            unreadable: opening.unreadable.clone(),
            state,
            pin: None,
            delivered_before: 0,
            furthest: 0,
            fruitless: 0,
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
                    let Answer { delivered_before, active, floor, was_reset } = asked.await?;
                    self.delivered_before = self.delivered_before.max(delivered_before);
                    if let Some(care) = &mut self.care
                        && let Some(floor) = floor
                    {
                        care.last = floor;
                    }
                    let now = Instant::now();
                    self.state = match active {
                        true => State::Resetting { until: now + FIRST_AFTER_RESET },
                        false => State::StandingBy { look_at: now + self.look_every },
                    };
                    if was_reset {
                        self.fruitless += 1;
                        if self.fruitless > MOST_FRUITLESS && self.care.is_none() {
                            return Err(Interrupted::new(
                                "the server delivers messages, but they do not arrive",
                            ));
                        }
                    }
                    continue;
                }
                State::StandingBy { look_at: until } | State::Resetting { until } => *until,
                _ => far,
            };
            let look_at_floor = self.care.as_ref().map_or(far, |care| care.look_at);
            if look_at_floor <= Instant::now() {
                self.look_at_floor().await?;
                continue;
            }
            let message = tokio::select! {
                biased;
                message = timeout_at(until.min(look_at_floor), self.source.next()) => message,
                () = self.connection.lost() => {
                    self.reconnected().await?;
                    continue;
                }
                () = self.reporter.differs() => {
                    return Err(Interrupted::new("the durable consumer on the server was changed"));
                }
            };
            if self.connection.is_lost() {
                // With an order everything comes again at once, and in order. Without, it would only after `ack_wait`:
                // so what is here already is taken, as of before the interruption.
                let taken = matches!(self.state, State::Unordered) && self.left > 0;
                match message {
                    Ok(Ok(jetstream::Message { message, .. })) if taken && !is_cut(&message) => {
                        self.left -= 1;
                        let message =
                            jetstream::Message { message, context: self.answering.clone() };
                        let again = message.info().is_ok_and(|info| info.delivered > 1);
                        return Ok(Arrival { message, again });
                    }
                    _ => self.reconnected().await?,
                }
                continue;
            }
            let message = match message {
                Ok(Err(error)) if error.is_over && self.care.is_some() => {
                    self.read_anew().await?;
                    continue;
                }
                Ok(message) => {
                    let message = message?.message;
                    jetstream::Message { message, context: self.answering.clone() }
                }
                Err(_) if until > Instant::now() => continue,
                Err(_) => {
                    // After a reset: nothing is left, or it was lost, or another process has it.
                    self.look();
                    continue;
                }
            };
            let Ok(info) = message.info() else {
                continue;
            };
            let (number, sequence) = (info.consumer_sequence, info.stream_sequence);
            if is_cut(&message) {
                let stored = SystemTime::from(info.published);
                self.cut(Place::new(info.stream, sequence, stored)).await?;
            }
            // Those that cannot be parsed had numbers, too.
            let skipped = self.care.as_ref().map_or(0, |care| care.skipped(sequence));
            let again = info.delivered > 1 || info.stream_sequence <= self.delivered_before;
            match &mut self.state {
                State::Unordered => {
                    let pin = pin(&message);
                    if pin != self.pin {
                        self.pin.clone_from(&pin);
                        self.reporter.active(pin);
                    }
                    self.came(sequence);
                    return Ok(Arrival { message, again });
                }
                State::StandingBy { .. } => self.take_over(&message),
                _ if pin(&message) != self.pin => self.take_over(&message),
                State::InOrder { next } if number == *next + skipped => {
                    *next = number + 1;
                    self.came(sequence);
                    return Ok(Arrival { message, again });
                }
                State::Resetting { .. } if number == 1 + skipped => {
                    self.state = State::InOrder { next: number + 1 };
                    self.came(sequence);
                    return Ok(Arrival { message, again });
                }
                State::Resetting { .. } | State::Asking(_) => {}
                State::InOrder { next } => {
                    tracing::debug!(
                        consumer = self.consumer,
                        expected = *next,
                        number,
                        "a message is missing; starting again from the ack floor"
                    );
                    self.reset();
                }
            }
        }
    }

    /// A message came without its payload, as it does while the durable consumer has headers_only, or else was sent as if.
    /// No error if the latter is so: the durable consumer is as it should be, and this message has come like this before,
    /// over a subscription that was opened with the same finding.
    async fn cut(&mut self, place: Place) -> Result<(), Interrupted> {
        let sequence = place.sequence();
        let headers_only = info(&self.stream, &self.consumer).await?.config.headers_only;
        if !headers_only && self.unreadable.came_cut_before(place) {
            return Ok(());
        }
        Err(Interrupted::new(format!(
            "message {sequence} came without its payload, because the durable consumer on the server has, or had, \
             headers_only = true; set it to false (nats consumer edit), and the message comes again with its payload"
        )))
    }

    /// A message has arrived that may be handed on.
    fn came(&mut self, sequence: u64) {
        if let Some(care) = &mut self.care {
            care.last = care.last.max(sequence);
        }
        if sequence > self.furthest {
            self.furthest = sequence;
            self.fruitless = 0;
        }
    }

    /// The connection is another one now. With care that was to be expected; it may have ended by another message that
    /// cannot be parsed.
    async fn reconnected(&mut self) -> Result<(), Interrupted> {
        let Some(care) = &mut self.care else {
            return Err(Interrupted::new("the connection to the broker was lost"));
        };
        self.connection.renew();
        let info = info(&self.stream, &self.consumer).await?;
        if info.created != care.created {
            return Err(Interrupted::new(
                "the durable consumer on the server was deleted and created again",
            ));
        }
        let found = care.unreadable.look(&care.durable, &info).await;
        care.sequences.extend(found.map_err(Interrupted::new)?);
        if let Source::OneByOne(one_by_one) = &mut self.source
            && one_by_one.lost()
            && active_pin(&info).is_some()
        {
            // The pin came with the message that was lost.
            let unpinned = self.stream.unpin_consumer(&self.consumer, GROUP).await;
            unpinned.map_err(|error| Interrupted::new(full_text(&error)))?;
        }
        Ok(())
    }

    /// With care: reads over another client, because the last one did not survive what it read.
    async fn read_anew(&mut self) -> Result<(), Interrupted> {
        if let (Source::OneByOne(one_by_one), Some(care)) = (&mut self.source, &self.care) {
            let reading = care.reader.context().await;
            self.connection = Connection::of(&reading.client());
            one_by_one.read_over(reading).await?;
        }
        self.reconnected().await
    }

    /// Whether what cannot be parsed lies behind the ack floor by now: then it never comes again.
    async fn look_at_floor(&mut self) -> Result<(), Interrupted> {
        if let Some(care) = &mut self.care {
            let floor = info(&self.stream, &self.consumer).await?.ack_floor.stream_sequence;
            if care.sequences.last().is_none_or(|last| *last <= floor) {
                return Err(Interrupted::at_once(
                    "all messages that cannot be parsed are acknowledged; reading \
                normally again",
                ));
            }
            care.look_at = Instant::now() + LOOK_AT_FLOOR;
        }
        Ok(())
    }

    /// This process is the active one now.
    fn take_over(&mut self, message: &jetstream::Message) {
        self.pin = pin(message);
        self.reporter.active(self.pin.clone());
        tracing::debug!(
            consumer = self.consumer,
            pin = self.pin,
            "this process is active now; starting from the ack floor"
        );
        // A first delivery: what is before it in the stream went to others.
        let known = match message.info() {
            Ok(info) if info.delivered == 1 => Some(info.stream_sequence.saturating_sub(1)),
            _ => None,
        };
        let careful = self.care.is_some();
        let reporter = self.reporter.clone();
        self.ask(move |stream, consumer| async move {
            let delivered_before = match known {
                Some(known) => known,
                None => info(&stream, &consumer).await?.delivered.stream_sequence,
            };
            let floor = reset(&stream, &consumer, &reporter, careful).await?;
            Ok(Answer { delivered_before, active: true, floor, was_reset: false })
        });
    }

    fn reset(&mut self) {
        let careful = self.care.is_some();
        let reporter = self.reporter.clone();
        self.ask(move |stream, consumer| async move {
            let floor = reset(&stream, &consumer, &reporter, careful).await?;
            Ok(Answer { delivered_before: 0, active: true, floor, was_reset: true })
        });
    }

    /// Has delivered again what nobody works on.
    fn look(&mut self) {
        let mine = self.pin.clone();
        let careful = self.care.is_some();
        let reporter = self.reporter.clone();
        self.ask(move |stream, consumer| async move {
            let info = info(&stream, &consumer).await?;
            let pin = active_pin(&info);
            let nobody = pin.is_none();
            let (mut floor, mut was_reset) = (None, false);
            if info.num_ack_pending > 0 && (nobody || pin == mine) {
                tracing::debug!(consumer, "no process is active; resetting the durable consumer");
                floor = reset(&stream, &consumer, &reporter, careful).await?;
                was_reset = true;
            }
            let delivered_before = if nobody { info.delivered.stream_sequence } else { 0 };
            Ok(Answer { delivered_before, active: false, floor, was_reset })
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
        Interrupted::new(format!(
            "the server did not describe the durable consumer: {}",
            full_text(&error)
        ))
    })
}

/// The pin of the active process, if there is one.
pub(super) fn active_pin(info: &Info) -> Option<String> {
    info.priority_groups.iter().find_map(|group| group.pinned_client_id.clone())
}

/// Has everything delivered again from the ack floor on; where that is, if it is asked for.
async fn reset(
    stream: &Stream,
    consumer: &str,
    reporter: &Reporter,
    ask: bool,
) -> Result<Option<u64>, Interrupted> {
    let _resetting = reporter.resetting();
    let reset = stream.reset_consumer(consumer, None).await;
    reset.map_err(|error| {
        Interrupted::new(format!(
            "the server did not reset the durable consumer: {}",
            full_text(&error)
        ))
    })?;
    match ask {
        true => Ok(Some(info(stream, consumer).await?.ack_floor.stream_sequence)),
        false => Ok(None),
    }
}

/// Whether the server left the payload out: it says how large that is.
fn is_cut(message: &async_nats::Message) -> bool {
    let size = message.headers.as_ref().and_then(|headers| headers.get_last("Nats-Msg-Size"));
    message.payload.is_empty()
        && size.is_some_and(|size| size.as_str().parse().is_ok_and(|size: u64| size > 0))
}

fn pin(message: &jetstream::Message) -> Option<String> {
    let headers = message.headers.as_ref()?;
    Some(headers.get_last(header::NATS_PIN_ID)?.as_str().to_owned())
}
