//! Ships parked events, and holds back the keys that wait behind one.
//!
//! In a strict order, a key with an unresolved dead letter is blocked: its events are parked when they are read. About
//! once a second, between two pages, the shipper waits until everything before is stored, and then ships the parked
//! events that are due. A key is no longer blocked once none of its events is dead or parked. All of this happens in
//! the shipper's one flow, so no later event of the key can overtake.
//!
//! When the relay has gone [back](crate::checkpoint), earlier events of a blocked key are read again. They are parked,
//! or stay as they are aside. Until all that was there has been read again, a parked event is due only up to the
//! position that the relay has reached. The cursor says so, and a new leader reads it there. If an event holds the
//! relay in between, parked events behind it wait, too. With `order = "key"` there is no such limit, because a key does
//! not wait there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use tokio::time::Instant;

use crate::acknowledged::Acknowledged;
use crate::config::{NoStream, RelayConfig, ShippingOrder};
use crate::cursor::Cursor;
use crate::dead_letters::{Aside, Due, Held, Parked, Unnoted, Written};
use crate::health::Observer;
use crate::interrupted::Interrupted;
use crate::lease::{Lease, LeaseError};
use crate::message::{Form, Message};
use crate::reader::MessagePage;
use crate::refused::{Reason, Refused};
use crate::rows::BadRow;
use crate::sink::{KeyedWindow, Sink, SinkError, SinkFailure};

/// The log names at most this many events of a page that cannot be sent, and counts the others.
const NAMED: usize = 10;
/// How long a parked event that was not stored waits for its next try. Other events do not wait for it.
const AGAIN: Duration = Duration::from_secs(5);
/// The same for an event that got no answer. Trying it takes as long as the timeout for an answer. If there are so many
/// of them that their tries take longer than this, it waits until the others have been tried.
const AGAIN_UNANSWERED: Duration = Duration::from_secs(60);
/// So long at the most.
const LONGEST_ROUND: Duration = Duration::from_secs(3600);
/// How often the shipper looks for parked events.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long parked events are shipped before the pages have their turn again.
const TURN: Duration = Duration::from_secs(1);

pub(crate) struct Parking {
    lease: Arc<Lease>,
    context: Context,
    acknowledged: Acknowledged,
    relay: String,
    form: Form,
    no_stream: NoStream,
    /// The blocked keys. `None`: the order is not strict.
    blocked: Option<HashSet<String>>,
    due_at: Instant,
    observer: Observer,
    /// Letters whose events were not stored, or not marked as dead, and when they are tried again.
    waiting: HashMap<i64, Instant>,
    /// Why the last of these was not stored.
    trouble: Option<String>,
    unnoted: Unnoted,
    held: Held,
}

impl Parking {
    /// `unnoted` comes from the [`Parking`](Self::into_unnoted) before.
    pub(crate) async fn open(
        config: &RelayConfig,
        lease: &Arc<Lease>,
        context: Context,
        acknowledged: Acknowledged,
        observer: Observer,
        unnoted: &mut Unnoted,
    ) -> Result<Self, LeaseError> {
        let mut parking = Self {
            lease: lease.clone(),
            context,
            acknowledged,
            relay: config.name.clone(),
            form: Form::of(config),
            no_stream: config.no_stream,
            blocked: (config.order == ShippingOrder::Strict).then(HashSet::new),
            due_at: Instant::now(),
            observer,
            waiting: HashMap::new(),
            trouble: None,
            unnoted: Unnoted::default(),
            held: Held::default(),
        };
        parking.ask_blocked().await?;
        parking.unnoted = std::mem::take(unnoted);
        Ok(parking)
    }

    pub(crate) fn into_unnoted(self) -> Unnoted {
        self.unnoted
    }

    pub(crate) fn due_at(&self) -> Instant {
        self.due_at
    }

    pub(crate) fn is_due(&self) -> bool {
        self.due_at <= Instant::now()
    }

    /// Sets aside the events that cannot be sent, and parks the events of blocked keys. Takes both out of the batch.
    ///
    /// This happens before the sink is given anything of the page, and so before the cursor passes it. If this leader
    /// ends in between, its successor reads the same events again and finds their letters.
    pub(crate) async fn hold_back(&mut self, batch: &mut MessagePage) -> Result<(), LeaseError> {
        let bad = std::mem::take(&mut batch.bad);
        if bad.is_empty() && self.blocked.as_ref().is_none_or(HashSet::is_empty) {
            return Ok(());
        }
        let mut aside: Vec<Aside> = Vec::with_capacity(bad.len());
        let refused: Vec<Refused> = bad.iter().map(|bad| bad.refused.clone()).collect();
        let mut bad = bad.into_iter().peekable();
        let mut parked = 0;
        batch.messages.retain(|message| {
            while let Some(bad) = bad.next_if(|bad| bad.refused.position < message.position) {
                block(&mut self.blocked, &bad);
                aside.push(Aside::bad(bad));
            }
            let waits = (message.key.as_ref().zip(self.blocked.as_ref()))
                .is_some_and(|(key, blocked)| blocked.contains(key));
            if waits {
                parked += 1;
                aside.push(Aside::parked(message.position, message.event_id));
            }
            !waits
        });
        for bad in bad {
            block(&mut self.blocked, &bad);
            aside.push(Aside::bad(bad));
        }
        if aside.is_empty() {
            return Ok(());
        }
        batch.positions = batch.messages.iter().map(|message| message.position).collect();
        tracing::debug!(relay = self.relay, events = parked, "parked behind dead letters");
        let Written { new, refused: held, .. } = self.lease.keep(aside).await?;
        if !held.is_empty() {
            self.held.add();
            self.due_at = Instant::now();
        }
        let new: HashSet<i64> = new.into_iter().collect();
        // While the relay holds, it reads a page again and again, including events that are already set aside.
        self.say_bad(refused.iter().filter(|refused| new.contains(&refused.position)).collect());
        Ok(())
    }

    /// Logs events that cannot be sent: the first few by name, and the number of the others.
    fn say_bad(&self, refused: Vec<&Refused>) {
        for refused in &refused {
            self.observer.meter.dead_letter(refused.reason);
        }
        for refused in refused.iter().take(NAMED) {
            say_dead(&self.relay, refused);
        }
        if let (Some(next), Some(last)) = (refused.get(NAMED), refused.last()) {
            tracing::error!(
                relay = self.relay,
                events = refused.len() - NAMED,
                from = next.position,
                to = last.position,
                "more events that can never be shipped; they are dead letters now"
            );
        }
    }

    /// Why events are neither stored nor dead letters, or parked ones not stored or not noted to be, while that is so.
    /// It holds nothing else.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.held.why().or(self.unnoted.why()).or(self.trouble.as_deref())
    }

    /// Ships the parked events that are due, and returns how many. Everything before them must be stored. `reached`:
    /// where the relay stands.
    pub(crate) async fn ship(&mut self, reached: &Cursor) -> Result<u64, Interrupted> {
        let mut shipped = 0;
        let began = Instant::now();
        let is_strict = self.blocked.is_some();
        let up_to = reached.again_up_to().filter(|_| is_strict).unwrap_or(i64::MAX);
        self.waiting.retain(|_, again_at| *again_at > began);
        self.unnoted.write(&self.lease).await?;
        let dead = self.held.write(&self.lease).await?;
        self.say_bad(dead.iter().collect());
        loop {
            let largest = self.context.client().max_payload();
            let left_out: Vec<i64> =
                self.waiting.keys().copied().chain(self.unnoted.letters()).collect();
            let due = self.lease.due(is_strict, &left_out, up_to, largest).await?;
            let sendable = self.sendable(due);
            if sendable.letters.is_empty() && sendable.dead.is_empty() {
                break;
            }
            shipped += self.ship_some(sendable).await?;
            // The pages behind have their turn now, and the other parked events the next one.
            if began.elapsed() > TURN {
                break;
            }
        }
        if self.waiting.is_empty() {
            self.trouble = None;
        }
        self.ask_blocked().await?;
        self.due_at = Instant::now() + INTERVAL;
        Ok(shipped)
    }

    async fn ask_blocked(&mut self) -> Result<(), LeaseError> {
        if let Some(blocked) = &mut self.blocked {
            *blocked = self.lease.blocked().await?;
        }
        Ok(())
    }

    /// Ships these, up to the first that the broker does not store. Events that cannot be sent become dead again. So
    /// does an event that the broker refuses, for whatever reason; an operator may retry it. An event without an answer
    /// or without a stream waits, and holds nothing else.
    async fn ship_some(&mut self, sendable: Sendable) -> Result<u64, Interrupted> {
        let Sendable { mut letters, messages, mut dead } = sendable;
        let subjects: Vec<_> = messages.iter().map(|message| message.subject.clone()).collect();
        let began = Instant::now();
        let mut window = KeyedWindow::new(self.context.clone(), self.acknowledged.clone());
        let outcome = match window.store(messages).await {
            Ok(_) => window.flush().await,
            failed => failed,
        };
        let mut held = None;
        if let Err(SinkFailure { stored, error }) = outcome {
            // The first event that is not known to be stored is the one that failed.
            let stored = usize::try_from(stored).unwrap_or(usize::MAX);
            match (letters.get(stored).copied(), error.refused(self.no_stream), error) {
                (Some(letter), Some(refused), _) => dead.push((letter, refused)),
                (
                    Some(letter),
                    None,
                    SinkError::NotStored { position, event_id, refusal: Some(_), error },
                ) => {
                    dead.push((
                        letter,
                        Refused { position, event_id, reason: Reason::Refused, error },
                    ));
                }
                (Some(letter), None, error) if error.position().is_some() => {
                    let now = Instant::now();
                    match &error {
                        // The same holds for all of its subject.
                        SinkError::NoStream { subject, heard: false, .. } => {
                            let alike = letters.iter().zip(&subjects).skip(stored);
                            let alike = alike.filter(|(_, other)| other.as_str() == subject);
                            self.waiting.extend(alike.map(|(letter, _)| (*letter, now + AGAIN)));
                        }
                        // Whoever waits with it has a turn before it comes again.
                        _ => {
                            let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
                            let round =
                                (began.elapsed() * 2).saturating_mul(waiting.saturating_add(1));
                            self.waiting.insert(
                                letter,
                                now + AGAIN_UNANSWERED.max(round.min(LONGEST_ROUND)),
                            );
                        }
                    }
                    self.trouble = Some(error.to_string());
                }
                (_, _, error) => held = Some(error),
            }
            letters.truncate(stored);
        }
        let shipped = letters.len() as u64;
        if !letters.is_empty() {
            tracing::info!(relay = self.relay, events = letters.len(), "shipped parked events");
            if let Some(left_out) = self.lease.shipped(&letters).await? {
                self.unnoted.add(left_out);
            }
        }
        for (letter, refused) in dead {
            match self.lease.dead_again(letter, &refused).await? {
                None => say_dead(&self.relay, &refused),
                Some(left_out) => {
                    self.waiting.insert(letter, Instant::now() + AGAIN);
                    self.trouble = Some(left_out.to_string());
                }
            }
        }
        held.map_or(Ok(shipped), |error| Err(error.into()))
    }

    /// The events that can be sent. In a strict order, an event that cannot be sent also stops the later events of its
    /// key.
    fn sendable(&self, due: Due) -> Sendable {
        let mut sendable = Sendable::default();
        let mut stopped = HashSet::new();
        let mut bad = due.bad.into_iter().peekable();
        for Parked { letter, row, attempts } in due.events {
            let place = (row.position, letter);
            while let Some(bad) = bad.next_if(|bad| (bad.refused.position, bad.place) < place) {
                sendable.dead.push((bad.place, bad.refused));
                stopped.extend(bad.key);
            }
            if self.form.keys_wait && row.key.as_ref().is_some_and(|key| stopped.contains(key)) {
                continue;
            }
            let (position, event_id, key) = (row.position, row.event_id, row.key.clone());
            match row.into_retry(&self.form, attempts) {
                Ok(message) => {
                    sendable.letters.push(letter);
                    sendable.messages.push(message);
                }
                Err(error) => {
                    let error = pillarbox_store::full_text(&error);
                    sendable.dead.push((
                        letter,
                        Refused { position, event_id, reason: Reason::Invalid, error },
                    ));
                    stopped.extend(key);
                }
            }
        }
        sendable.dead.extend(bad.map(|bad| (bad.place, bad.refused)));
        sendable
    }
}

/// Parked events that are ready for the broker.
#[derive(Default)]
struct Sendable {
    /// The letter of each message.
    letters: Vec<i64>,
    messages: Vec<Message>,
    dead: Vec<(i64, Refused)>,
}

/// Blocks the key of an event that cannot be sent, if the order is strict.
fn block(blocked: &mut Option<HashSet<String>>, bad: &BadRow) {
    if let (Some(blocked), Some(key)) = (blocked, &bad.key) {
        blocked.insert(key.clone());
    }
}

/// Logs an event that has become a dead letter.
pub(crate) fn say_dead(relay: &str, refused: &Refused) {
    tracing::error!(
        relay,
        event_id = %refused.event_id,
        position = refused.position,
        reason = %refused.reason,
        error = refused.error,
        "this event can never be shipped; it is a dead letter now"
    );
}
