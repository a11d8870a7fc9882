//! Runs events: one, a batch, or a parked one. What follows from their end is in `endings.rs`.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use pillarbox_event::{Partition, RawEvent};
use pillarbox_inbox::error::BoxError;
use pillarbox_inbox::source::{BatchEnd, DeliveryService, ParkedAll, RunBatch};
use pillarbox_inbox::{Delivery, HandlerError, InboxError, Outcome};
use pillarbox_store::full_text;
use tokio::time::timeout;

use super::endings::Endings;
use super::scheduler::{Content, Disposition, FULL_WAIT, Held, Lane, Origin, Parking, Ran, Work};

/// How much longer than it is held back a parked event stays with this process.
const HELD_LONGER: Duration = Duration::from_secs(60);

/// How long it may take, in the middle of an outage, to let other processes take a parked event.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// What all events of a consumer share.
#[derive(Clone)]
pub(super) struct Worker<S> {
    pub(super) service: S,
    pub(super) batches: Option<Arc<dyn RunBatch>>,
    pub(super) endings: Endings,
}

impl<S: DeliveryService> Worker<S> {
    /// Runs what the scheduler has decided to run.
    pub(super) async fn work(self, work: Work) -> Ran {
        match work {
            Work::One { lane, event } => {
                let disposition = self.run_one(&event).await;
                Ran {
                    lanes: vec![(lane, vec![(event, disposition)])],
                    parking: None,
                    looked_up: false,
                }
            }
            Work::Batch(lanes) => {
                let held: Vec<_> = lanes.iter().flat_map(|(_, held)| held).collect();
                let dispositions = match held.iter().all(|held| held.is_letter()) {
                    true => self.handle_letters(&held).await,
                    false => {
                        let contents: Vec<_> =
                            held.iter().map(|held| held.content.clone()).collect();
                        self.handle_batch(&contents, false).await
                    }
                };
                let mut dispositions = dispositions.into_iter();
                let mut with_disposition =
                    |held| (held, dispositions.next().unwrap_or(Disposition::ByItself));
                let lanes = lanes.into_iter().map(|(lane, held)| {
                    (lane, held.into_iter().map(&mut with_disposition).collect())
                });
                Ran { lanes: lanes.collect(), parking: None, looked_up: false }
            }
            Work::LookUp(lanes) => {
                Ran { lanes: self.look_up(lanes).await, parking: None, looked_up: true }
            }
            Work::Park { lane, events, wait, paused } => {
                let parking = self.park(&events, wait, paused).await;
                // If the table does not take an event that has not failed, it is tried again soon.
                let wait = if paused { Some(FULL_WAIT) } else { wait };
                let dispositions = parking.dispositions(wait, events.len());
                let events = events.into_iter().zip(dispositions).collect();
                Ran { lanes: vec![(lane, events)], parking: Some(parking), looked_up: false }
            }
            Work::Postpone { lane, event, wait } => {
                if let Some(event) = event.content.event() {
                    self.endings.rest_paused(&event, wait).await;
                }
                Ran {
                    lanes: vec![(lane, vec![(event, Disposition::Paused)])],
                    parking: None,
                    looked_up: false,
                }
            }
        }
    }

    /// Skips those of these events that are handled already. If that cannot be found out, all go on as usual, and what
    /// is wrong shows then.
    async fn look_up(self, lanes: Vec<(Lane, Vec<Held>)>) -> Vec<(Lane, Vec<(Held, Disposition)>)> {
        let events = lanes.iter().flat_map(|(_, held)| held);
        let events: Vec<_> = events.filter_map(|held| held.content.event()).collect();
        let handled = self.endings.skip_handled(&events).await;
        let disposition = |held: &Held| match held.content.event() {
            Some(event) if handled.contains(event.identity().as_str()) => Disposition::Skipped,
            _ => Disposition::Behind,
        };
        let with_disposition = |held| {
            let disposition = disposition(&held);
            (held, disposition)
        };
        let lanes = lanes
            .into_iter()
            .map(|(lane, held)| (lane, held.into_iter().map(with_disposition).collect()));
        lanes.collect()
    }

    async fn run_one(self, held: &Held) -> Disposition {
        let content = held.content.clone();
        match (&held.origin, held.misfit) {
            (Origin::Letter { until, .. }, _) => {
                self.handle_letter(content, held.again, held.is_alone(), *until).await
            }
            (_, Some(misfit)) => self.handle_misfit(content, misfit).await,
            _ => self.handle(content, held.again, held.is_alone()).await,
        }
    }

    /// Lets an event of another number of partitions leave if it is handled already: see [`Disposition::Misfit`].
    async fn handle_misfit(self, content: Arc<Content>, misfit: Partition) -> Disposition {
        let Some(event) = content.event() else {
            // It has no order to keep.
            return self.handle(content, true, false).await;
        };
        match self.endings.store.is_handled(event.identity().as_str()).await {
            Ok(true) => {
                self.endings.skipped(&event).await;
                Disposition::Skipped
            }
            Ok(false) => Disposition::Misfit(misfit),
            Err(error) => Disposition::Environment(full_text(&error)),
        }
    }

    /// Parks events of a key, in their order. `wait`: how long the first of them, which failed, waits. `None` if it has
    /// not run, and all are to stand behind what waits in the table already. `paused`: it has not failed, but its type
    /// is paused.
    async fn park(self, held: &[Held], wait: Option<Duration>, paused: bool) -> Parking {
        let events: Vec<_> = held.iter().filter_map(|held| held.content.event()).collect();
        let key = events.first().and_then(|event| event.key());
        let again: Vec<_> = held.iter().map(|held| held.again).collect();
        match self.endings.store.park_all(key, &events, &again, wait, paused).await {
            Ok(ParkedAll::Yes) => Parking::Done,
            Ok(ParkedAll::NotBehind) => Parking::NotBehind,
            Ok(ParkedAll::Full) => Parking::Full,
            Err(error) => {
                let (consumer, error) = (&self.endings.config.name, full_text(&error));
                tracing::debug!(consumer, key, error, "events could not be parked");
                Parking::Failed
            }
        }
    }

    /// Handles one event. `again`: it was delivered before. `alone`: nothing runs beside it.
    async fn handle(mut self, content: Arc<Content>, again: bool, alone: bool) -> Disposition {
        match &*content {
            Content::Event(event) => {
                if again
                    && let Some(disposition) = self.endings.begin_again(event, alone, false).await
                {
                    return disposition;
                }
                self.run(event, false, alone).await
            }
            Content::Undecodable(message) => self.endings.set_aside(message).await,
        }
    }

    /// Whether it is an event of a type that is handled in batches.
    pub(super) fn takes_in_batches(&self, content: &Content) -> bool {
        let takes = |event: Arc<RawEvent>| {
            self.batches.as_ref().is_some_and(|batches| batches.takes(event.event_type()))
        };
        content.event().is_some_and(takes)
    }

    /// Handles parked events in one transaction: those that can begin in time. What becomes of them is recorded in the
    /// table.
    async fn handle_letters(self, held: &[&Held]) -> Vec<Disposition> {
        let now = tokio::time::Instant::now();
        let in_time = |held: &Held| match held.origin {
            Origin::Letter { until, .. } => now <= until,
            Origin::Stream { .. } => true,
        };
        let begin: Vec<&Held> = held.iter().copied().filter(|held| in_time(held)).collect();
        let contents: Vec<_> = begin.iter().map(|held| held.content.clone()).collect();
        let endings = self.endings.clone();
        let dispositions = match begin.is_empty() {
            true => Vec::new(),
            false => self.handle_batch(&contents, true).await,
        };
        let mut away = Vec::new();
        for (held, disposition) in begin.iter().zip(&dispositions) {
            match (disposition, held.content.event()) {
                (Disposition::Retry(wait), Some(event)) => endings.rest(&event, *wait).await,
                (Disposition::Environment(_), _) => {
                    away.extend(held.letter().map(|(position, _)| (position, true)));
                }
                _ => {}
            }
        }
        if !away.is_empty() {
            // Other processes may take them before their time is over, if the database can be told.
            let _ = timeout(REST_TIMEOUT, endings.store.give_back_letters(&away)).await;
        }
        let mut dispositions = dispositions.into_iter();
        let late_or = |held: &&Held| match in_time(held) {
            true => dispositions.next().unwrap_or(Disposition::ByItself),
            false => Disposition::Late,
        };
        held.iter().map(late_or).collect()
    }

    /// Handles many events in one transaction, if all are events and the handler takes batches.
    async fn handle_batch(self, contents: &[Arc<Content>], dead_letters: bool) -> Vec<Disposition> {
        let events: Vec<_> = contents.iter().filter_map(|content| content.event()).collect();
        let Some(batches) = self.batches.filter(|_| events.len() == contents.len()) else {
            return contents.iter().map(|_| Disposition::ByItself).collect();
        };
        let endings = self.endings;
        let name = &endings.config.name;
        let began = Instant::now();
        let run = AssertUnwindSafe(batches.run(&endings.store, &events, dead_letters))
            .catch_unwind()
            .await;
        let error = match run {
            Ok(Ok(ends)) => {
                let took = began.elapsed();
                let mut dispositions = Vec::with_capacity(ends.len());
                for (end, event) in ends.into_iter().zip(&events) {
                    dispositions.push(match end {
                        BatchEnd::Well(outcome) => endings.ended_well(event, outcome, took).await,
                        BatchEnd::Failed(error) => endings.failed(event, &error, took, false).await,
                        BatchEnd::Behind => Disposition::Behind,
                    });
                }
                return dispositions;
            }
            Ok(Err(error)) => error,
            Err(_) => InboxError::handler(HandlerError::transient(
                "an event of the batch could not be read",
            )),
        };
        let text = full_text(&error);
        if endings.judge.is_everybodys(&error).await {
            return contents.iter().map(|_| Disposition::Environment(text.clone())).collect();
        }
        let events = contents.len();
        tracing::debug!(
            consumer = name,
            events,
            error = text,
            "a batch failed; its events run one by one now"
        );
        contents.iter().map(|_| Disposition::ByItself).collect()
    }

    /// Handles a parked event, if it can begin before `until`. `again`: it may have been begun before. What becomes of
    /// it is recorded in the table.
    async fn handle_letter(
        mut self,
        content: Arc<Content>,
        again: bool,
        alone: bool,
        until: tokio::time::Instant,
    ) -> Disposition {
        let Content::Event(event) = &*content else {
            return Disposition::Done;
        };
        if tokio::time::Instant::now() > until {
            return Disposition::Late;
        }
        if again && let Some(disposition) = self.endings.begin_again(event, alone, true).await {
            if let Disposition::HeldBack(wait) = &disposition {
                // No other process may take it meanwhile.
                self.endings.rest(event, *wait + HELD_LONGER).await;
            }
            return disposition;
        }
        let disposition = self.run(event, true, alone).await;
        match &disposition {
            Disposition::Retry(wait) => self.endings.rest(event, *wait).await,
            // Other processes may take it before its time is over, if the database can be told.
            Disposition::Environment(_) => {
                let _ = timeout(REST_TIMEOUT, self.endings.rest(event, Duration::ZERO)).await;
            }
            _ => {}
        }
        disposition
    }

    async fn run(&mut self, event: &Arc<RawEvent>, dead_letter: bool, alone: bool) -> Disposition {
        let id = event.id().as_str();
        if self.endings.judge.is_suspect(&event.identity()) {
            if !alone {
                tracing::warn!(
                    consumer = self.endings.config.name,
                    event_id = id,
                    "the database went away twice while this event was handled; the event now runs alone"
                );
                return Disposition::Alone;
            }
            self.endings.judge.begin_alone().await;
        }
        let began = Instant::now();
        match call(&mut self.service, event, dead_letter).await {
            Ok(outcome) => self.endings.ended_well(event, outcome, began.elapsed()).await,
            Err(error) => self.endings.failed(event, &error, began.elapsed(), alone).await,
        }
    }
}

/// Calls the service. A panic is a failure.
async fn call(
    service: &mut impl DeliveryService,
    event: &Arc<RawEvent>,
    dead_letter: bool,
) -> Result<Outcome, InboxError> {
    let delivery = Delivery { event: event.clone(), dead_letter };
    let called = AssertUnwindSafe(async move {
        std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(delivery).await
    });
    let error: BoxError = match called.catch_unwind().await {
        Ok(Ok(outcome)) => return Ok(outcome),
        Ok(Err(error)) => error.into(),
        Err(_) => "the service panicked".into(),
    };
    Err(InboxError::of_service(error))
}
