//! Messages of one durable consumer, without gaps.
//!
//! Order per key takes more than reading a stream in order. A delivery can be lost on the way (a cut connection), and a
//! process can die with events that it has not acknowledged. The server delivers those events again only after
//! `ack_wait`, *behind* later events of the same key. So, with [`HandlingOrder::Key`](super::HandlingOrder::Key):
//!
//! - the durable consumer is pinned: the server delivers to one process at a time (nats-server 2.11);
//! - a process that becomes the active one, or sees a gap in the consumer's own sequence, makes the server reset the
//!   consumer to its ack floor (`$JS.API.CONSUMER.RESET`, nats-server 2.14). The server then delivers everything
//!   unacknowledged again at once, in the order of the stream, numbered from 1;
//! - the process drops messages that are on their way from before the reset. The inbox skips events that are handled.
//!
//! ```text
//!                  first message                 number 1              gap, or another pin
//!   standing by ──────────────────► resetting ────────────► in order ──────────────────────► resetting
//!     │  ▲  ▲                           │
//!     └──┘  └───────────────────────────┘ nothing comes
//!     looks
//! ```
//!
//! The pin's id changes whenever another process may have been active in between. That process's own reset would have
//! started the numbers at 1 again.
//!
//! A process that stands by checks from time to time whether messages are unacknowledged while no process is active. If
//! so, it makes the server deliver them again. Otherwise, if a dead process held as much as a process may hold, all
//! would wait for `ack_wait`.
//!
//! A reset clears the server's counts of deliveries, so a message that another process had before looks new. That
//! process held at most as many messages as it may, all of them above the ack floor, and the numbers began there at the
//! reset. So after a takeover every message counts as delivered before whose number at the time of the takeover was, or
//! would have been, no larger than that. There are none of these if the durable consumer was so young when this process
//! was pinned that no earlier pin can have run out.

mod room;

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
use crate::subscription::room::Room;

/// How long the first message may take after a reset. Then the consumer is reset again.
const FIRST_AFTER_RESET: Duration = Duration::from_secs(5);

/// How often lost messages may be delivered again before something new arrives.
const MOST_FRUITLESS: u32 = 2;

/// How often to check whether the ack floor has passed the messages that cannot be parsed.
const LOOK_AT_FLOOR: Duration = Duration::from_millis(500);

/// Longer than anything is waited for.
const FAR: Duration = Duration::from_secs(3600);

pub(super) struct Subscription {
    answering: Context,
    stream: Stream,
    consumer: String,
    source: Source,
    past_unreadable: Option<PastUnreadable>,
    unreadable: Unreadable,
    state: ReadingState,
    /// The pin under which the consumer was reset last.
    pin: Option<String>,
    /// The last sequence of the stream that was delivered before this process became the active one.
    delivered_before: u64,
    /// How many messages behind that one may have been delivered before the last reset by another process.
    perhaps_before: u64,
    /// The largest sequence of the stream that has arrived.
    furthest: u64,
    /// How often the durable consumer was reset since that one arrived.
    fruitless: u32,
    look_every: Duration,
    connection: Connection,
    /// How many messages may still be taken after the connection was lost.
    left: usize,
    room: Room,
    reporter: Reporter,
}

/// A message, and whether it was delivered before, to this process or another, as far as can be known.
pub(super) struct Arrival {
    pub(super) message: jetstream::Message,
    pub(super) again: bool,
}

impl Arrival {
    /// Where the message is stored. `None` for one that is not a JetStream delivery.
    pub(super) fn place(&self) -> Option<Place> {
        let info = self.message.info().ok()?;
        // Of whichever type async-nats has it: a feature decides, which any crate may turn on.
        let stored = SystemTime::from(info.published);
        Some(Place::new(info.stream, info.stream_sequence, stored))
    }
}

enum ReadingState {
    /// Takes every message: without an order, or on a server that cannot reset.
    Unordered,
    /// Nothing has come yet.
    StandingBy { look_at: Instant },
    /// The server is being asked, or told to start again from the ack floor.
    Asking(BoxFuture<'static, Result<Answer, Interrupted>>),
    /// The server was told. Messages from before the reset are still on their way.
    Resetting { until: Instant },
    /// The next message must have this number.
    InOrder { next: u64 },
}

struct Answer {
    /// The last sequence of the stream that was delivered to other processes.
    delivered_before: u64,
    /// How many behind that one may have been, if this process took over.
    perhaps_before: Option<u64>,
    /// Whether this process is the active one.
    active: bool,
    /// Where the ack floor is, if the question included that.
    floor: Option<u64>,
    /// Whether the consumer was reset because messages were lost.
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
                Some(message) => Ok(message?),
                None => Err(Interrupted::over()),
            },
            Self::OneByOne(one_by_one) => one_by_one.next().await,
        }
    }
}

/// Everything needed to read past messages that cannot be parsed. See [`unreadable`](super::unreadable).
struct PastUnreadable {
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

impl PastUnreadable {
    /// How many of those messages lie between the last one that came and this one.
    fn skipped(&self, sequence: u64) -> u64 {
        match self.last < sequence {
            true => self.sequences.range(self.last + 1..sequence).count() as u64,
            false => 0,
        }
    }
}

/// Everything needed to open a subscription.
pub(super) struct Opening<'a> {
    /// Through the service's client.
    pub(super) stream: &'a Stream,
    /// Through the client that reads.
    pub(super) consumer: &'a Consumer<pull::Config>,
    pub(super) reading: &'a Context,
    pub(super) reader: &'a Reader,
    /// Through the service's client. Messages are acknowledged over it.
    pub(super) answering: &'a Context,
    pub(super) durable: &'a Durable,
    pub(super) config: &'a ConsumerConfig,
    pub(super) ordered: bool,
    pub(super) pinned: bool,
    /// The pin of this process in its last subscription.
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
        let expires = if pinned { config.takeover / 3 } else { Duration::from_secs(10) };
        let connection = Connection::of(&opening.reading.client());
        let (source, past_unreadable) = if opening.found.is_empty() {
            let mut messages = consumer
                .stream()
                .max_messages_per_batch(config.prefetch)
                .expires(expires)
                .heartbeat((expires / 3).min(Duration::from_secs(5)));
            if pinned {
                messages = messages.group(GROUP);
            }
            (Source::Many(Box::new(messages.messages().await?)), None)
        } else {
            let name = &opening.durable.name;
            let pull =
                Pull { stream: config.stream.clone(), consumer: name.clone(), pinned, expires };
            let pin = opening.pin.map(str::to_owned);
            let one_by_one = OneByOne::open(opening.reading.clone(), pull, pin).await?;
            let past = PastUnreadable {
                reader: opening.reader.clone(),
                unreadable: opening.unreadable.clone(),
                durable: opening.durable.clone(),
                sequences: opening.found,
                last: info.ack_floor.stream_sequence,
                look_at: Instant::now() + LOOK_AT_FLOOR,
                created: info.created,
            };
            (Source::OneByOne(Box::new(one_by_one)), Some(past))
        };
        let state = match opening.ordered {
            true => ReadingState::StandingBy { look_at: Instant::now() },
            false => ReadingState::Unordered,
        };
        // With partitions, the pin does not say which process is active.
        if config.several().is_none() {
            reporter.connected(pinned, active_pin(info));
        }
        Ok(Self {
            answering: opening.answering.clone(),
            stream: stream.clone(),
            consumer: info.name.clone(),
            source,
            past_unreadable,
            unreadable: opening.unreadable.clone(),
            state,
            pin: None,
            delivered_before: 0,
            perhaps_before: 0,
            furthest: 0,
            fruitless: 0,
            look_every: config.takeover / 3,
            connection,
            left: config.prefetch,
            room: Room::new(opening.durable, config),
            reporter,
        })
    }

    /// The last pin of this process.
    pub(super) fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    /// The next message. Safe to cancel.
    async fn arrive(&mut self) -> Result<Arrival, Interrupted> {
        loop {
            if let ReadingState::Asking(asked) = &mut self.state {
                let answer = asked.await?;
                self.answered(answer)?;
                continue;
            }
            let far = Instant::now() + FAR;
            let until = match self.state {
                ReadingState::StandingBy { look_at: until } | ReadingState::Resetting { until } => {
                    until
                }
                _ => far,
            };
            let look_at_floor = self.past_unreadable.as_ref().map_or(far, |past| past.look_at);
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
                match self.left_over(message.ok()) {
                    Some(arrival) => return Ok(arrival),
                    None => self.reconnected().await?,
                }
                continue;
            }
            match message {
                Ok(Ok(message)) => {
                    if let Some(arrival) = self.arrived(self.answerable(message)).await? {
                        return Ok(arrival);
                    }
                }
                Ok(Err(error)) if error.is_over && self.past_unreadable.is_some() => {
                    self.read_anew().await?
                }
                Ok(Err(error)) => return Err(error),
                Err(_) if until > Instant::now() => {}
                // After a reset, this means that nothing is left, that it was lost, or that another process has it.
                Err(_) => self.look(),
            }
        }
    }

    /// The server has answered, or was told to start from the ack floor.
    fn answered(&mut self, answer: Answer) -> Result<(), Interrupted> {
        let Answer { delivered_before, perhaps_before, active, floor, was_reset } = answer;
        self.delivered_before = self.delivered_before.max(delivered_before);
        self.perhaps_before = perhaps_before.unwrap_or(self.perhaps_before);
        if let Some(past) = &mut self.past_unreadable
            && let Some(floor) = floor
        {
            past.last = floor;
        }
        let now = Instant::now();
        self.state = match active {
            true => ReadingState::Resetting { until: now + FIRST_AFTER_RESET },
            false => ReadingState::StandingBy { look_at: now + self.look_every },
        };
        if was_reset {
            self.fruitless += 1;
            if self.fruitless > MOST_FRUITLESS && self.past_unreadable.is_none() {
                let reason = "the server delivers messages, but they do not arrive";
                return Err(Interrupted::new(reason));
            }
        }
        Ok(())
    }

    /// The message, which is then acknowledged through the service's client.
    fn answerable(&self, message: jetstream::Message) -> jetstream::Message {
        jetstream::Message { message: message.message, context: self.answering.clone() }
    }

    /// A message that arrived before the connection was lost, if it may still be handled.
    ///
    /// With an order, everything comes again at once and in order. Without one, a message would come again only after
    /// `ack_wait`, so what has already arrived is taken.
    fn left_over(
        &mut self,
        message: Option<Result<jetstream::Message, Interrupted>>,
    ) -> Option<Arrival> {
        let message = message?.ok()?;
        let is_taken = matches!(self.state, ReadingState::Unordered) && self.left > 0;
        if !is_taken || is_cut(&message) {
            return None;
        }
        self.left -= 1;
        let again = message.info().is_ok_and(|info| info.delivered > 1);
        Some(Arrival { message: self.answerable(message), again })
    }

    /// A message has arrived. Returns it if it is the next one.
    async fn arrived(
        &mut self,
        message: jetstream::Message,
    ) -> Result<Option<Arrival>, Interrupted> {
        let Ok(info) = message.info() else { return Ok(None) };
        let (number, sequence) = (info.consumer_sequence, info.stream_sequence);
        let was_redelivered = info.delivered > 1;
        if is_cut(&message) {
            let stored = SystemTime::from(info.published);
            self.cut(Place::new(info.stream, sequence, stored)).await?;
        }
        // Messages that cannot be parsed have numbers, too.
        let skipped = self.past_unreadable.as_ref().map_or(0, |past| past.skipped(sequence));
        match &mut self.state {
            ReadingState::Unordered => {
                let pin = pin(&message);
                if pin != self.pin {
                    self.pin.clone_from(&pin);
                    self.reporter.active(pin);
                }
            }
            ReadingState::StandingBy { .. } => {
                self.take_over(&message);
                return Ok(None);
            }
            _ if pin(&message) != self.pin => {
                self.take_over(&message);
                return Ok(None);
            }
            ReadingState::InOrder { next } if number == *next + skipped => *next = number + 1,
            ReadingState::Resetting { .. } if number == 1 + skipped => {
                self.state = ReadingState::InOrder { next: number + 1 };
            }
            ReadingState::Resetting { .. } | ReadingState::Asking(_) => return Ok(None),
            ReadingState::InOrder { next } => {
                tracing::debug!(
                    consumer = self.consumer,
                    expected = *next,
                    number,
                    "a message is missing; starting again from the ack floor"
                );
                self.reset();
                return Ok(None);
            }
        }
        self.came(sequence);
        let again = self.may_be_begun(sequence) || was_redelivered;
        Ok(Some(Arrival { message, again }))
    }

    /// A message came without its payload. Either the durable consumer has headers_only, or the sender made the message
    /// look so. The second case is no error: the durable consumer is as it should be, and the message came like this
    /// before, over an earlier subscription that was opened because of it.
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

    /// A message has arrived that may be returned.
    fn came(&mut self, sequence: u64) {
        if let Some(past) = &mut self.past_unreadable {
            past.last = past.last.max(sequence);
        }
        if sequence > self.furthest {
            self.furthest = sequence;
            self.fruitless = 0;
        }
    }

    /// Whether another process may have begun this message, which came in order.
    fn may_be_begun(&mut self, sequence: u64) -> bool {
        if sequence > self.delivered_before && self.perhaps_before > 0 {
            self.perhaps_before -= 1;
            self.delivered_before = sequence;
        }
        sequence <= self.delivered_before
    }

    /// There is a new connection. While reading past unreadable messages, that is expected: another one may have ended
    /// the old connection.
    async fn reconnected(&mut self) -> Result<(), Interrupted> {
        let Some(past) = &mut self.past_unreadable else {
            return Err(Interrupted::new("the connection to the broker was lost"));
        };
        self.connection.renew();
        let info = info(&self.stream, &self.consumer).await?;
        if info.created != past.created {
            return Err(Interrupted::new(
                "the durable consumer on the server was deleted and created again",
            ));
        }
        let found = past.unreadable.look(&past.durable, &info, 0).await;
        past.sequences.extend(found.map_err(Interrupted::new)?);
        if let Source::OneByOne(one_by_one) = &mut self.source
            && one_by_one.lost()
            && active_pin(&info).is_some()
        {
            // The pin came with the message that was lost.
            self.stream.unpin_consumer(&self.consumer, GROUP).await?;
        }
        Ok(())
    }

    /// Reads past unreadable messages over another client, because the last one did not survive what it has read.
    async fn read_anew(&mut self) -> Result<(), Interrupted> {
        if let (Source::OneByOne(one_by_one), Some(past)) =
            (&mut self.source, &self.past_unreadable)
        {
            let reading = past.reader.context().await;
            self.connection = Connection::of(&reading.client());
            one_by_one.read_over(reading).await?;
        }
        self.reconnected().await
    }

    /// Checks whether the ack floor has passed the messages that cannot be parsed. Then they never come again.
    async fn look_at_floor(&mut self) -> Result<(), Interrupted> {
        if let Some(past) = &mut self.past_unreadable {
            let floor = info(&self.stream, &self.consumer).await?.ack_floor.stream_sequence;
            if past.sequences.last().is_none_or(|last| *last <= floor) {
                return Err(Interrupted::at_once(
                    "all messages that cannot be parsed are acknowledged; reading \
                normally again",
                ));
            }
            past.look_at = Instant::now() + LOOK_AT_FLOOR;
        }
        Ok(())
    }

    /// This process has become the active one.
    fn take_over(&mut self, message: &jetstream::Message) {
        self.pin = pin(message);
        self.reporter.active(self.pin.clone());
        tracing::debug!(
            consumer = self.consumer,
            pin = self.pin,
            "this process is active now; starting from the ack floor"
        );
        let first = match message.info() {
            Ok(info) if info.delivered == 1 => Some((info.stream_sequence, info.consumer_sequence)),
            _ => None,
        };
        let most = self.room.places.map_or(0, |places| places as u64);
        let ask = self.past_unreadable.is_some();
        let reporter = self.reporter.clone();
        self.ask(move |stream, consumer| async move {
            let (delivered_before, perhaps) = match first {
                // This is a first delivery, so what is before it in the stream went to other processes.
                Some((sequence, number)) => {
                    let perhaps = (most + 1).saturating_sub(number);
                    let nothing = perhaps == 0 || is_first_pin(&info(&stream, &consumer).await?);
                    (sequence.saturating_sub(1), if nothing { 0 } else { perhaps })
                }
                // The numbers count messages twice that were delivered twice.
                None => (info(&stream, &consumer).await?.delivered.stream_sequence, most),
            };
            let floor = reset(&stream, &consumer, &reporter, ask).await?;
            let perhaps_before = Some(perhaps);
            Ok(Answer { delivered_before, perhaps_before, active: true, floor, was_reset: false })
        });
    }

    fn reset(&mut self) {
        let ask = self.past_unreadable.is_some();
        let reporter = self.reporter.clone();
        self.ask(move |stream, consumer| async move {
            let floor = reset(&stream, &consumer, &reporter, ask).await?;
            let (delivered_before, perhaps_before) = (0, None);
            Ok(Answer { delivered_before, perhaps_before, active: true, floor, was_reset: true })
        });
    }

    /// Makes the server deliver again what no process is working on.
    fn look(&mut self) {
        let mine = self.pin.clone();
        let ask = self.past_unreadable.is_some();
        let reporter = self.reporter.clone();
        self.ask(move |stream, consumer| async move {
            let info = info(&stream, &consumer).await?;
            let pin = active_pin(&info);
            let nobody = pin.is_none();
            let (mut floor, mut was_reset) = (None, false);
            if info.num_ack_pending > 0 && (nobody || pin == mine) {
                tracing::debug!(consumer, "no process is active; resetting the durable consumer");
                floor = reset(&stream, &consumer, &reporter, ask).await?;
                was_reset = true;
            }
            let delivered_before = if nobody { info.delivered.stream_sequence } else { 0 };
            let perhaps_before = None;
            Ok(Answer { delivered_before, perhaps_before, active: false, floor, was_reset })
        });
    }

    fn ask<F>(&mut self, question: impl FnOnce(Stream, String) -> F)
    where
        F: Future<Output = Result<Answer, Interrupted>> + Send + 'static,
    {
        self.state =
            ReadingState::Asking(Box::pin(question(self.stream.clone(), self.consumer.clone())));
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

/// Whether no process can have died before the active one was pinned: its pin would have lasted longer than the durable
/// consumer had existed.
fn is_first_pin(info: &Info) -> bool {
    let pinned = info.priority_groups.iter().find_map(|group| group.pinned_ts);
    pinned.is_some_and(|pinned| pinned < info.created + info.config.priority_timeout)
}

/// Makes the server deliver everything above the ack floor again. Returns where the ack floor is, if `ask` is set.
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

/// Whether the server left the payload out. A header then says how large the payload is.
fn is_cut(message: &async_nats::Message) -> bool {
    let size = message.headers.as_ref().and_then(|headers| headers.get_last("Nats-Msg-Size"));
    message.payload.is_empty()
        && size.is_some_and(|size| size.as_str().parse().is_ok_and(|size: u64| size > 0))
}

fn pin(message: &jetstream::Message) -> Option<String> {
    let headers = message.headers.as_ref()?;
    Some(headers.get_last(header::NATS_PIN_ID)?.as_str().to_owned())
}
