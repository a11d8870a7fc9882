//! Ships parked events, and holds back the keys that wait behind one.
//!
//! In a strict order a key with an unresolved dead letter is blocked: its events are parked as they are read.
//! About once a second the shipper stops between two pages, waits until everything before is stored, and ships
//! what is due. A key goes on when nothing of it is dead or parked any more. All this happens in the shipper's
//! one flow, so no later event of the key can overtake.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use tokio::time::Instant;

use crate::acknowledged::Acknowledged;
use crate::config::{NoStream, Order, RelayConfig};
use crate::dead_letters::{Aside, Due, Parked, Unnoted};
use crate::health::Observer;
use crate::interrupted::Interrupted;
use crate::lease::{Lease, LeaseError};
use crate::message::{Form, Message};
use crate::reader::Batch;
use crate::refused::{Reason, Refused};
use crate::rows::BadRow;
use crate::sink::{KeyedWindow, Sink, SinkError, SinkFailure};

/// So many of a page's events that cannot be sent are named in the log; the others are counted.
const NAMED: usize = 10;
/// How long a parked event that was not stored waits for its next try. The others go on without it.
const AGAIN: Duration = Duration::from_secs(5);
/// The same for one that got no answer, which costs the time that an answer may take.
const AGAIN_UNANSWERED: Duration = Duration::from_secs(60);
/// How often parked events are looked for.
const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Parking {
    lease: Arc<Lease>,
    context: Context,
    acknowledged: Acknowledged,
    relay: String,
    form: Form,
    no_stream: NoStream,
    /// The keys that wait, if the order is strict.
    blocked: Option<HashSet<String>>,
    due_at: Instant,
    observer: Observer,
    /// Letters whose events were not stored, or not noted to be dead, and when they are tried again.
    waiting: HashMap<i64, Instant>,
    /// Why the last of them was not stored.
    trouble: Option<String>,
    unnoted: Unnoted,
}

impl Parking {
    /// `unnoted` is [left](Self::into_unnoted) by the parking before.
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
            blocked: (config.order == Order::Strict).then(HashSet::new),
            due_at: Instant::now(),
            observer,
            waiting: HashMap::new(),
            trouble: None,
            unnoted: Unnoted::default(),
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

    /// Sets aside what cannot be sent, and parks the events of blocked keys; takes both out of the batch.
    ///
    /// This happens before anything of the page is given to the sink, and so before the cursor passes it. If this
    /// leader ends in between, its successor meets the same events again and finds their letters.
    pub(crate) async fn hold_back(&mut self, batch: &mut Batch) -> Result<(), LeaseError> {
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
                aside.push(Aside::parked(message.position));
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
        let new: HashSet<i64> = self.lease.keep(aside).await?.into_iter().collect();
        // A page is read again and again while the relay holds, with what is aside already.
        self.say_bad(refused.iter().filter(|refused| new.contains(&refused.position)).collect());
        Ok(())
    }

    /// Tells the log of events that cannot be sent: of some by name, and of many how many.
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

    /// Why parked events are not stored, or not noted to be, while some are not. That holds nothing else.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.unnoted.why().or(self.trouble.as_deref())
    }

    /// Ships the parked events that are due, and returns how many. Everything before must have been stored.
    pub(crate) async fn ship(&mut self) -> Result<u64, Interrupted> {
        let mut shipped = 0;
        self.waiting.retain(|_, again_at| *again_at > Instant::now());
        self.unnoted.write(&self.lease).await?;
        loop {
            let largest = self.context.client().max_payload();
            let due = self.lease.due(self.blocked.is_some(), largest).await?;
            let sendable = self.sendable(due);
            if sendable.letters.is_empty() && sendable.dead.is_empty() {
                break;
            }
            shipped += self.ship_some(sendable).await?;
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

    /// Ships these, up to the first that the broker does not store. Those that cannot be sent are dead again, and so is
    /// one that the broker refuses for whatever reason: an operator may try it again. One without an answer or without
    /// a stream waits, and holds nothing else.
    async fn ship_some(&mut self, sendable: Sendable) -> Result<u64, Interrupted> {
        let Sendable { mut letters, messages, mut dead } = sendable;
        let mut window = KeyedWindow::new(self.context.clone(), self.acknowledged.clone());
        let outcome = match window.store(messages).await {
            Ok(_) => window.flush().await,
            failed => failed,
        };
        let mut held = None;
        if let Err(SinkFailure { stored, error }) = outcome {
            // The first that is not known to be stored is the one that failed.
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
                    let answered = matches!(error, SinkError::NoStream { heard: false, .. });
                    let pause = if answered { AGAIN } else { AGAIN_UNANSWERED };
                    self.waiting.insert(letter, Instant::now() + pause);
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

    /// What of these can be sent. In a strict order, nothing of a key behind an event of it that cannot.
    fn sendable(&self, due: Due) -> Sendable {
        let mut sendable = Sendable::default();
        let mut stopped = HashSet::new();
        let mut bad = due.bad.into_iter().peekable();
        for Parked { letter, row, attempts } in due.events {
            let place = (row.position, letter);
            while let Some(bad) = bad.next_if(|bad| (bad.refused.position, bad.place) < place) {
                if !self.waiting.contains_key(&bad.place) {
                    sendable.dead.push((bad.place, bad.refused));
                }
                stopped.extend(bad.key);
            }
            if self.waiting.contains_key(&letter) || self.unnoted.contains(letter) {
                stopped.extend(row.key);
                continue;
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
        let bad = bad.filter(|bad| !self.waiting.contains_key(&bad.place));
        sendable.dead.extend(bad.map(|bad| (bad.place, bad.refused)));
        sendable
    }
}

/// Parked events as they go to the broker.
#[derive(Default)]
struct Sendable {
    /// The letter of each message.
    letters: Vec<i64>,
    messages: Vec<Message>,
    dead: Vec<(i64, Refused)>,
}

/// The key of an event that cannot be sent waits from here on, if the order is strict.
fn block(blocked: &mut Option<HashSet<String>>, bad: &BadRow) {
    if let (Some(blocked), Some(key)) = (blocked, &bad.key) {
        blocked.insert(key.clone());
    }
}

/// Tells the log of an event that is among the dead letters now.
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
