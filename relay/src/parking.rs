//! Ships parked events, and holds back the keys that wait behind one.
//!
//! In a strict order a key with an unresolved dead letter is blocked: its events are parked as they are read.
//! About once a second the shipper stops between two pages, waits until everything before is stored, and ships
//! what is due. A key goes on when nothing of it is dead or parked any more. All this happens in the shipper's
//! one flow, so no later event of the key can overtake.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::jetstream::Context;
use tokio::time::Instant;

use crate::checkpoint::Acknowledged;
use crate::config::{NoStream, Order, RelayConfig};
use crate::lease::LeaseError;
use crate::letters::{Letters, Parked, Request};
use crate::message::Form;
use crate::reader::{Batch, Refused};
use crate::shipper::Interrupted;
use crate::sink::{Fault, KeyedWindow, Sink, SinkFailure};

/// How often parked events are looked for.
const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Parking {
    letters: Letters,
    context: Context,
    acknowledged: Acknowledged,
    relay: String,
    form: Form,
    no_stream: NoStream,
    /// The keys that wait, if the order is strict.
    blocked: Option<HashSet<String>>,
    due_at: Instant,
}

impl Parking {
    pub(crate) async fn open(
        config: &RelayConfig,
        letters: &Letters,
        context: Context,
        acknowledged: Acknowledged,
    ) -> Result<Self, LeaseError> {
        let mut parking = Self {
            letters: letters.clone(),
            context,
            acknowledged,
            relay: config.name.clone(),
            form: Form::of(config),
            no_stream: config.no_stream,
            blocked: (config.order == Order::Strict).then(HashSet::new),
            due_at: Instant::now(),
        };
        parking.ask_blocked().await?;
        Ok(parking)
    }

    pub(crate) fn due_at(&self) -> Instant {
        self.due_at
    }

    pub(crate) fn is_due(&self) -> bool {
        self.due_at <= Instant::now()
    }

    /// Parks the events of blocked keys, and takes them out of the batch.
    pub(crate) async fn hold_back(&self, batch: &mut Batch) -> Result<(), LeaseError> {
        let Some(blocked) = self.blocked.as_ref().filter(|blocked| !blocked.is_empty()) else {
            return Ok(());
        };
        let mut parked = Vec::new();
        batch.messages.retain(|message| {
            let waits = message.key.as_ref().is_some_and(|key| blocked.contains(key));
            if waits {
                parked.push(message.position);
            }
            !waits
        });
        if parked.is_empty() {
            return Ok(());
        }
        batch.positions = batch.messages.iter().map(|message| message.position).collect();
        tracing::debug!(relay = self.relay, events = parked.len(), "parked behind dead letters");
        self.letters.ask(|done| Request::Park(parked, done)).await
    }

    /// Ships the parked events that are due, and returns how many. Everything before must have been stored.
    pub(crate) async fn ship(&mut self) -> Result<u64, Interrupted> {
        let mut shipped = 0;
        loop {
            let due = self.letters.ask(Request::Due).await?;
            if due.is_empty() {
                break;
            }
            shipped += self.ship_some(due).await?;
        }
        self.ask_blocked().await?;
        self.due_at = Instant::now() + INTERVAL;
        Ok(shipped)
    }

    async fn ask_blocked(&mut self) -> Result<(), LeaseError> {
        if let Some(blocked) = &mut self.blocked {
            *blocked = self.letters.ask(Request::Blocked).await?;
        }
        Ok(())
    }

    /// Ships these, up to the first that cannot be.
    async fn ship_some(&self, due: Vec<Parked>) -> Result<u64, Interrupted> {
        let mut positions = Vec::with_capacity(due.len());
        let mut messages = Vec::with_capacity(due.len());
        let mut refused = None;
        for Parked { row, attempts } in due {
            let (position, event_id) = (row.position, row.event_id);
            match row.into_retry(&self.form, attempts) {
                Ok(message) => {
                    positions.push(position);
                    messages.push(message);
                }
                Err(error) => {
                    let error = crate::error::full_text(&error);
                    refused = Some(Refused { position, event_id, fault: Fault::Invalid, error });
                    break;
                }
            }
        }
        let mut window = KeyedWindow::new(self.context.clone(), self.acknowledged.clone());
        let outcome = match window.store(messages).await {
            Ok(_) => window.flush().await,
            failed => failed,
        };
        let mut held = None;
        if let Err(SinkFailure { stored, error }) = outcome {
            positions.truncate(usize::try_from(stored).unwrap_or(usize::MAX));
            refused = error.refused(self.no_stream);
            held = refused.is_none().then_some(error);
        }
        let shipped = positions.len() as u64;
        if !positions.is_empty() {
            tracing::info!(relay = self.relay, events = positions.len(), "shipped parked events");
            self.letters.ask(|done| Request::Shipped(positions, done)).await?;
        }
        if let Some(refused) = refused {
            say_dead(&self.relay, &refused);
            self.letters.ask(|done| Request::DeadAgain(refused, done)).await?;
        }
        held.map_or(Ok(shipped), |error| Err(error.into()))
    }
}

/// Tells the log of an event that goes to the dead letters.
pub(crate) fn say_dead(relay: &str, refused: &Refused) {
    tracing::error!(
        relay,
        event_id = %refused.event_id,
        position = refused.position,
        reason = %refused.fault,
        error = refused.error,
        "this event can never be shipped; moving it to the dead letters"
    );
}
