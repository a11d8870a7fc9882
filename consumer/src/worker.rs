//! Handles one event, and says what is to become of its message.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::FutureExt;
use pillarbox_event::{Partition, RawEvent};
use pillarbox_inbox::source::{
    BatchEnd, Blame, Burial, Judge, Killers, ParkedAll, Ruling, RunBatch, Store, Stored,
    is_of_data, is_refused,
};
use pillarbox_inbox::{Delivery, HandlerError, InboxError, MAX_RETRY_AFTER, Outcome};
use pillarbox_store::full_text;
use tokio::time::timeout;
use tower_service::Service;

use super::config::ConsumerConfig;
use super::error::BoxError;
use super::incoming::Content;
use super::journal::{Change, Journal, Untold};
use super::status::Reporter;

/// The longest wait between failures that are not counted.
const LONGEST_EXCUSED_WAIT: Duration = Duration::from_secs(1);

/// An outage that counts was met more often than this.
const LEAST_OUTAGES: u32 = 10;

/// Tells it as an error if the [`Journal`] says so, else at the level `debug`.
macro_rules! error_or_debug {
    ($tells:expr, $($what:tt)*) => {
        match $tells {
            true => tracing::error!($($what)*),
            false => tracing::debug!($($what)*),
        }
    };
}

/// How much longer than it is held back a parked event is left to this process.
const HELD_LONGER: Duration = Duration::from_secs(60);

/// So many attempts that the wait after them is a long one.
const MANY: u32 = 10;

/// How long it may take to let a parked event be taken again in the middle of an outage.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an event waits in this process that is to be parked, when as many wait in the table as may.
const FULL_WAIT: Duration = Duration::from_secs(1);

/// What became of events that were to be parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parking {
    Done,
    /// Nothing of their key waits in the table.
    NotBehind,
    /// As many wait there as may.
    Full,
    Failed,
}

/// What is to become of a message.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Handled, or found to be a duplicate: acknowledge it.
    Done,
    /// It waits among the dead letters now: acknowledge it.
    Parked,
    /// Given up: it shall never come again.
    Dead,
    /// Try again after this long.
    Retry(Duration),
    /// Try again with nothing beside it.
    Alone,
    /// Not run, because it may kill the process, or another one may that is being found out: ask again after this long.
    HeldBack(Duration),
    /// Nothing can be handled now.
    Environment(String),
    /// Not run, because an event before it in its lane failed: comes again behind that one.
    Behind,
    /// Not run: it goes on waiting for this long.
    Waits(Duration),
    /// It was taken from the dead letters, and too long ago to be begun.
    Late,
    /// Its batch was undone as a whole: comes again at once, and not in a batch.
    Singly,
    /// Its sender has another number of partitions, and its key's other events are elsewhere: it waits
    /// until somebody has seen to that, or it is handled.
    Misfit(Partition),
}

/// What all events of a consumer share.
#[derive(Clone)]
pub(super) struct Worker<S> {
    pub(super) service: S,
    pub(super) batches: Option<Arc<dyn RunBatch>>,
    pub(super) rules: Rules,
}

/// What follows from a failure.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) store: Store,
    pub(super) killers: Killers,
    pub(super) judge: Judge,
    pub(super) config: Arc<ConsumerConfig>,
    pub(super) reporter: Reporter,
    pub(super) journal: Journal,
}

impl<S> Worker<S>
where
    S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send> + Send,
{
    /// Handles one event of another partitioning, if it is handled already: see [`Verdict::Misfit`].
    pub(super) async fn handle_misfit(self, content: Arc<Content>, misfit: Partition) -> Verdict {
        let Some(event) = content.event() else {
            // No order to keep.
            return self.handle(content, true, false).await;
        };
        match self.rules.store.is_handled(event.identity().as_str()).await {
            Ok(true) => {
                self.rules.skipped(&event).await;
                Verdict::Done
            }
            Ok(false) => Verdict::Misfit(misfit),
            Err(error) => Verdict::Environment(full_text(&error)),
        }
    }

    /// Parks events of a key, in their order. `wait`: for how long the first of them, which failed, waits; `None` if it
    /// has not run, and all are to stand behind what waits already. `again`: which of them may have been begun before.
    pub(super) async fn park(
        self,
        key: &str,
        contents: &[Arc<Content>],
        again: &[bool],
        wait: Option<Duration>,
    ) -> (Parking, Vec<Verdict>) {
        let rules = self.rules;
        let events: Vec<_> = contents.iter().filter_map(|content| content.event()).collect();
        let parking = match rules.store.park_all(key, &events, again, wait).await {
            Ok(ParkedAll::Yes) => Parking::Done,
            Ok(ParkedAll::NotBehind) => Parking::NotBehind,
            Ok(ParkedAll::Full) => Parking::Full,
            Err(error) => {
                let (consumer, error) = (&rules.config.name, full_text(&error));
                tracing::debug!(consumer, key, error, "events could not be parked");
                Parking::Failed
            }
        };
        let first = match (parking, wait) {
            (Parking::Done, _) => {
                return (parking, contents.iter().map(|_| Verdict::Parked).collect());
            }
            (_, Some(wait)) => Verdict::Waits(wait),
            (Parking::Full, None) => Verdict::Waits(FULL_WAIT),
            // It runs as any other, and what hinders the database is seen then.
            (_, None) => Verdict::Behind,
        };
        let others = contents.iter().skip(1).map(|_| Verdict::Behind);
        (parking, std::iter::once(first).chain(others).collect())
    }

    /// Handles one event; `again` if it was delivered before, `alone` if nothing runs beside it.
    pub(super) async fn handle(
        mut self,
        content: Arc<Content>,
        again: bool,
        alone: bool,
    ) -> Verdict {
        let name = &self.rules.config.name;
        match &*content {
            Content::Event(event) => {
                if again && let Some(verdict) = self.rules.begin_again(event, alone, false).await {
                    return verdict;
                }
                self.run(event, false, alone).await
            }
            Content::Undecodable(message) => {
                let (letter, error) = (content.id(), &message.error);
                let stored = self.rules.store.set_aside(&message.as_stored()).await;
                if matches!(stored, Ok(Stored::Now)) {
                    error_or_debug!(
                        self.rules.journal.tells(Change::Letter, None),
                        consumer = name,
                        letter,
                        error,
                        "a message is not an event; it is a dead letter now"
                    );
                }
                self.rules.buried(stored, letter, "undecodable").await
            }
        }
    }

    /// Handles many events at once, if they are events and there is a handler for that.
    pub(super) async fn handle_batch(self, contents: &[Arc<Content>]) -> Vec<Verdict> {
        let events: Vec<_> = contents.iter().filter_map(|content| content.event()).collect();
        let Some(batches) = self.batches.filter(|_| events.len() == contents.len()) else {
            return contents.iter().map(|_| Verdict::Singly).collect();
        };
        let rules = self.rules;
        let name = &rules.config.name;
        let began = Instant::now();
        let run = AssertUnwindSafe(batches.run(&rules.store, &events)).catch_unwind().await;
        let error = match run {
            Ok(Ok(ends)) => {
                let took = began.elapsed();
                let mut verdicts = Vec::with_capacity(ends.len());
                for (end, event) in ends.into_iter().zip(&events) {
                    verdicts.push(match end {
                        BatchEnd::Well(outcome) => rules.ended_well(event, outcome, took).await,
                        BatchEnd::Failed(error) => rules.failed(event, &error, took, false).await,
                        BatchEnd::Behind => Verdict::Behind,
                    });
                }
                return verdicts;
            }
            Ok(Err(error)) => error,
            Err(_) => InboxError::handler(HandlerError::transient(
                "an event of the batch could not be read",
            )),
        };
        let text = full_text(&error);
        if rules.judge.is_everybodys(&error).await {
            return contents.iter().map(|_| Verdict::Environment(text.clone())).collect();
        }
        let events = contents.len();
        tracing::debug!(
            consumer = name,
            events,
            error = text,
            "a batch failed; its events run one by one now"
        );
        contents.iter().map(|_| Verdict::Singly).collect()
    }

    /// Handles a parked event, if it can be begun before `until`; `again` if it may have been begun before. What becomes
    /// of it stands in the database.
    pub(super) async fn handle_letter(
        mut self,
        content: Arc<Content>,
        again: bool,
        alone: bool,
        until: tokio::time::Instant,
    ) -> Verdict {
        let Content::Event(event) = &*content else {
            return Verdict::Done;
        };
        if tokio::time::Instant::now() > until {
            return Verdict::Late;
        }
        if again && let Some(verdict) = self.rules.begin_again(event, alone, true).await {
            if let Verdict::HeldBack(wait) = &verdict {
                // By this process, and by no other one meanwhile.
                self.rules.rest(event, *wait + HELD_LONGER).await;
            }
            return verdict;
        }
        let verdict = self.run(event, true, alone).await;
        match &verdict {
            Verdict::Retry(wait) => self.rules.rest(event, *wait).await,
            // Before its time is over, if the database can be told.
            Verdict::Environment(_) => {
                let _ = timeout(REST_TIMEOUT, self.rules.rest(event, Duration::ZERO)).await;
            }
            _ => {}
        }
        verdict
    }

    async fn run(&mut self, event: &Arc<RawEvent>, dead_letter: bool, alone: bool) -> Verdict {
        let id = event.id().as_str();
        if self.rules.judge.is_suspect(&event.identity()) {
            if !alone {
                tracing::warn!(
                    consumer = self.rules.config.name,
                    event_id = id,
                    "the database went away twice while this event was handled; the event now runs alone"
                );
                return Verdict::Alone;
            }
            self.rules.judge.begin_alone().await;
        }
        let began = Instant::now();
        match call(&mut self.service, event, dead_letter).await {
            Ok(outcome) => self.rules.ended_well(event, outcome, began.elapsed()).await,
            Err(error) => self.rules.failed(event, &error, began.elapsed(), alone).await,
        }
    }
}

/// Calls the service. Its panic is a failure.
async fn call<S>(
    service: &mut S,
    event: &Arc<RawEvent>,
    dead_letter: bool,
) -> Result<Outcome, InboxError>
where
    S: Service<Delivery, Response = Outcome, Error: Into<BoxError>, Future: Send> + Send,
{
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

impl Rules {
    /// Marks an event that was delivered before; `parked`: taken from the dead letters. A verdict, if it is not to run
    /// now.
    async fn begin_again(&self, event: &RawEvent, alone: bool, parked: bool) -> Option<Verdict> {
        let (name, id) = (&self.config.name, event.id().as_str());
        match self.killers.begin(event, alone, parked).await {
            Ok(Ruling::Run) => None,
            Ok(Ruling::RunAlone) => {
                tracing::warn!(
                    consumer = name,
                    event_id = id,
                    "a process died while it handled this event; the event now runs alone"
                );
                Some(Verdict::Alone)
            }
            Ok(Ruling::Wait(wait)) => Some(Verdict::HeldBack(wait)),
            Ok(Ruling::Kills(deaths)) => {
                let error = "a process died each time it handled this event, the last time while it handled nothing \
                             else, but stays alive without it";
                tracing::error!(
                    consumer = name,
                    event_id = id,
                    event_type = event.event_type(),
                    error,
                    "a dead letter"
                );
                Some(self.bury(event, "kills", error, deaths).await)
            }
            Err(error) => {
                let text = full_text(&error);
                Some(self.unrecorded(event, &text, &error).await)
            }
        }
    }

    /// Has a parked event wait.
    async fn rest(&self, event: &RawEvent, wait: Duration) {
        if let Err(error) = self.store.rest(event.identity().as_str(), wait).await {
            tracing::debug!(event_id = %event.id(), %error, "the next attempt at a parked event could not be \
            scheduled; it may come earlier or later than it should");
        }
    }

    /// Tells what was not told one by one.
    pub(super) fn summarise(&self, at_last: bool) {
        let Some(Untold { fails, letters, unwritten }) = self.journal.summary(at_last) else {
            return;
        };
        let totals = self.reporter.meter.totals();
        tracing::warn!(
            consumer = self.config.name,
            begin_to_fail = fails,
            dead_letters = letters,
            not_written = unwritten,
            dead_letters_in_all = totals.dead_letters,
            failures_in_all = totals.failures,
            "more events fail than are logged one by one; these are the numbers since the last line like this; see \
             inbox_dead_letter for the letters, or use the log level debug"
        );
    }

    /// The event has ended without a failure.
    async fn ended_well(&self, event: &RawEvent, outcome: Outcome, took: Duration) -> Verdict {
        let id = event.id().as_str();
        match outcome {
            Outcome::Handled => {
                self.reporter.meter.handled(took);
                if self.journal.tells_recovery(&event.identity()) {
                    tracing::info!(
                        consumer = self.config.name,
                        event_id = id,
                        "an event that had failed is handled now"
                    );
                }
            }
            Outcome::Duplicate => self.skipped(event).await,
            Outcome::Parked => tracing::debug!(
                consumer = self.config.name,
                event_id = id,
                key = event.key(),
                "parked behind an earlier event of its key"
            ),
        }
        self.ended(event);
        if outcome == Outcome::Parked { Verdict::Parked } else { Verdict::Done }
    }

    /// The event is in work no more, and the database knows.
    fn ended(&self, event: &RawEvent) {
        let identity = event.identity();
        self.killers.ended(&identity);
        self.judge.clear(&identity);
    }

    /// The event is handled already. A process that was slow to see it may have left a failure behind.
    async fn skipped(&self, event: &RawEvent) {
        let id = event.id().as_str();
        self.reporter.meter.duplicate();
        tracing::debug!(consumer = self.config.name, event_id = id, "skipped a duplicate");
        if let Err(error) = self.store.forget_skipped(event.identity().as_str()).await {
            tracing::debug!(consumer = self.config.name, event_id = id, %error, "the record of a failure was not \
            removed for an event that is handled");
        }
    }

    async fn failed(
        &self,
        event: &RawEvent,
        error: &InboxError,
        took: Duration,
        alone: bool,
    ) -> Verdict {
        let (name, id) = (&self.config.name, event.id().as_str());
        let (event_type, text) = (event.event_type(), full_text(error));
        let identity = event.identity();
        let blame = self.judge.blame(&identity, error, alone).await;
        self.reporter.meter.failed(blame.fault().unwrap_or_else(|| error.fault()), took);
        self.reporter.error(Some(id), &text);
        match blame {
            Blame::Everybody => {
                // A handler that says so is believed for as long as one that tells of an outage.
                if error.is_said_to_be_everybodys()
                    && let Ok(outage) = self.store.record_outage(event, &text).await
                    && self.lasts_too_long(outage)
                {
                    return self.count(event, error, &text).await;
                }
                self.killers.unmark(&identity).await;
                Verdict::Environment(text)
            }
            Blame::Excused(most) => match self.store.record_uncounted(event, &text).await {
                Ok(times) if times > most => self.count(event, error, &text).await,
                Ok(times) => {
                    self.killers.ended(&identity);
                    if times == most.div_ceil(2) {
                        let (error, left) = (text.as_str(), most - times);
                        tracing::warn!(
                            consumer = name,
                            event_id = id,
                            event_type,
                            error,
                            left,
                            "a failure that is not counted is repeated; after `left` more it counts as an attempt"
                        );
                    }
                    Verdict::Retry(self.backoff(times).min(LONGEST_EXCUSED_WAIT))
                }
                Err(error) => self.unrecorded(event, &text, &error).await,
            },
            Blame::Elsewhere => {
                let outage = match self.store.record_outage(event, &text).await {
                    Ok(outage) => outage,
                    Err(error) => return self.unrecorded(event, &text, &error).await,
                };
                if self.lasts_too_long(outage) {
                    return self.count(event, error, &text).await;
                }
                self.killers.ended(&identity);
                let wait = self.wait(error, outage.0);
                let error = text.as_str();
                if outage.0 <= 1 && self.journal.tells(Change::Fails, Some(&identity)) {
                    tracing::warn!(
                        consumer = name,
                        event_id = id,
                        event_type,
                        error,
                        ?wait,
                        "something that the event needs is away; the event waits, and no attempt is counted"
                    );
                } else {
                    tracing::debug!(consumer = name, event_id = id, error, ?wait, "an outage");
                }
                Verdict::Retry(wait)
            }
            Blame::EventForGood => {
                let recorded = matches!(error, InboxError::Ended { committed: true });
                let error = text.as_str();
                error_or_debug!(
                    self.journal.tells(Change::Letter, Some(&identity)),
                    consumer = name,
                    event_id = id,
                    event_type,
                    error,
                    "the event failed for good; it is a dead letter now"
                );
                self.bury_as(event, "permanent", error, 1, recorded).await
            }
            Blame::Event => self.count(event, error, &text).await,
        }
    }

    /// Whether an outage that was met so often, and lasts for so long, counts. It has been looked at all that time, and
    /// not only at its ends.
    fn lasts_too_long(&self, (times, lasted): (u32, Duration)) -> bool {
        times > LEAST_OUTAGES && lasted > self.config.max_outage()
    }

    /// Counts an attempt, and gives the event up if it was the last.
    async fn count(&self, event: &RawEvent, error: &InboxError, text: &str) -> Verdict {
        let (name, id, event_type) = (&self.config.name, event.id().as_str(), event.event_type());
        let attempts = match self.store.record_failure(event, text).await {
            Ok(attempts) => attempts,
            Err(error) => return self.unrecorded(event, text, &error).await,
        };
        self.killers.ended(&event.identity());
        if attempts >= self.config.max_attempts {
            error_or_debug!(
                self.journal.tells(Change::Letter, Some(&event.identity())),
                consumer = name,
                event_id = id,
                event_type,
                attempts,
                error = text,
                "the last attempt failed; the event is a dead letter now"
            );
            return self.bury(event, "attempts", text, attempts).await;
        }
        let wait = self.wait(error, attempts);
        if attempts <= 1 && self.journal.tells(Change::Fails, Some(&event.identity())) {
            tracing::warn!(
                consumer = name,
                event_id = id,
                event_type,
                error = text,
                ?wait,
                "an attempt failed; the event is tried again"
            );
        } else {
            tracing::debug!(
                consumer = name,
                event_id = id,
                attempts,
                error = text,
                ?wait,
                "an attempt failed"
            );
        }
        Verdict::Retry(wait)
    }

    /// A failure could not be recorded: the database is away, or refuses the event's id.
    async fn unrecorded(&self, event: &RawEvent, text: &str, error: &sqlx::Error) -> Verdict {
        if is_of_data(error) {
            return self.bury(event, "permanent", text, 1).await;
        }
        self.unwritten(event.id().as_str(), error).await
    }

    /// What becomes of the event could not be written. While the database is well, that is this event's trouble alone.
    async fn unwritten(&self, id: &str, error: &sqlx::Error) -> Verdict {
        let text = full_text(error);
        if self.store.well().await.is_none() {
            return Verdict::Environment(text);
        }
        let wait = if is_refused(error) { self.config.max_backoff() } else { self.backoff(1) };
        if self.journal.tells(Change::Unwritten, None) {
            tracing::error!(
                consumer = self.config.name,
                event_id = id,
                error = text,
                ?wait,
                "the result of an event could not be recorded; the event is tried again"
            );
        }
        Verdict::Retry(wait)
    }

    /// How long until the next attempt, after this many.
    fn wait(&self, error: &InboxError, times: u32) -> Duration {
        let wanted = error.retry_after().unwrap_or_else(|| self.backoff(times));
        wanted.min(MAX_RETRY_AFTER)
    }

    async fn bury(&self, event: &RawEvent, reason: &str, error: &str, attempts: u32) -> Verdict {
        self.bury_as(event, reason, error, attempts, false).await
    }

    /// `recorded`: its own handler has recorded the event as handled, by a commit of its own.
    async fn bury_as(
        &self,
        event: &RawEvent,
        reason: &str,
        error: &str,
        attempts: u32,
        recorded: bool,
    ) -> Verdict {
        let stored = self.store.bury(Burial { event, reason, error, attempts, recorded }).await;
        if matches!(stored, Ok(Stored::Now | Stored::Before)) {
            self.ended(event);
        }
        self.buried(stored, event.id().as_str(), reason).await
    }

    /// What follows from the attempt to store a letter.
    async fn buried(
        &self,
        stored: Result<Stored, sqlx::Error>,
        letter: &str,
        reason: &str,
    ) -> Verdict {
        match stored {
            Ok(Stored::Now) => {
                self.reporter.meter.dead_letter(reason);
                Verdict::Dead
            }
            Ok(Stored::Before) => Verdict::Dead,
            Ok(Stored::Not) => {
                let (consumer, error) = (&self.config.name, full_text(&Stored::not_stored()));
                tracing::error!(
                    consumer,
                    letter,
                    error,
                    "a dead letter could not be stored; the consumer tries again"
                );
                self.reporter.error(Some(letter), &error);
                Verdict::Retry(self.backoff(MANY))
            }
            Err(error) => self.unwritten(letter, &error).await,
        }
    }

    /// The wait after this many failed attempts.
    fn backoff(&self, attempts: u32) -> Duration {
        let most = self.config.max_backoff();
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
