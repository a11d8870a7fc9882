//! Records how the handling of an event has ended, and says what becomes of the event.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use pillarbox_event::RawEvent;
use pillarbox_inbox::source::{
    Burial, Judge, Killers, LetterStored, Ruling, Store, is_refused, is_refused_value,
};
use pillarbox_inbox::{InboxError, Outcome};
use pillarbox_store::full_text;

use super::after_failure::{self, Follows, Patience, Record, Recorded};
use super::config::ConsumerConfig;
use super::journal::{Journal, JournalChange, Untold};
use super::scheduler::{Disposition, Undecodable};
use super::status::Reporter;

/// Logs an error if the [`Journal`] gives it a line, and at the level `debug` otherwise.
macro_rules! error_or_debug {
    ($tells:expr, $($what:tt)*) => {
        match $tells {
            true => tracing::error!($($what)*),
            false => tracing::debug!($($what)*),
        }
    };
}

/// The wait after this many attempts is a long one.
const MANY: u32 = 10;

/// Everything needed to record the end of an event. All events of a consumer share it.
#[derive(Clone)]
pub(super) struct Endings {
    pub(super) store: Store,
    pub(super) killers: Killers,
    pub(super) judge: Judge,
    pub(super) config: Arc<ConsumerConfig>,
    pub(super) reporter: Reporter,
    pub(super) journal: Journal,
}

impl Endings {
    /// Marks an event that may have been begun before. Returns what becomes of it if it must not run now. `parked`: it
    /// was taken from the dead letters.
    pub(super) async fn begin_again(
        &self,
        event: &RawEvent,
        alone: bool,
        parked: bool,
    ) -> Option<Disposition> {
        let (name, id) = (&self.config.name, event.id().as_str());
        match self.killers.begin(event, alone, parked).await {
            Ok(Ruling::Run) => None,
            Ok(Ruling::RunAlone) => {
                tracing::warn!(
                    consumer = name,
                    event_id = id,
                    "a process died while it handled this event; the event now runs alone"
                );
                Some(Disposition::Alone)
            }
            Ok(Ruling::Wait(wait)) => Some(Disposition::HeldBack(wait)),
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

    /// Makes a parked event wait in the table for its next attempt.
    pub(super) async fn rest(&self, event: &RawEvent, wait: Duration) {
        if let Err(error) = self.store.rest(event.identity().as_str(), wait).await {
            tracing::debug!(event_id = %event.id(), %error, "the next attempt at a parked event could not be \
            scheduled; it may come earlier or later than it should");
        }
    }

    /// Lets a parked event of a paused type wait in the table.
    pub(super) async fn rest_paused(&self, event: &RawEvent, wait: Duration) {
        if let Err(error) = self.store.rest_paused(event.identity().as_str(), wait).await {
            tracing::debug!(event_id = %event.id(), %error, "a parked event of a paused type was not put back; it is \
            looked at again when its lease has ended");
        }
    }

    /// Logs the numbers of what was not logged one by one.
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

    /// The handling of the event has ended without a failure.
    pub(super) async fn ended_well(
        &self,
        event: &RawEvent,
        outcome: Outcome,
        took: Duration,
    ) -> Disposition {
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
        match outcome {
            Outcome::Handled => Disposition::Done,
            Outcome::Duplicate => Disposition::Skipped,
            Outcome::Parked => Disposition::Parked,
        }
    }

    /// The event is no longer in progress, and the database knows it.
    fn ended(&self, event: &RawEvent) {
        let identity = event.identity();
        self.killers.ended(&identity);
        self.judge.clear(&identity);
    }

    /// Skips those of these events that are handled already, and returns their identities. If the database does not
    /// tell, none is skipped.
    pub(super) async fn skip_handled(&self, events: &[Arc<RawEvent>]) -> HashSet<String> {
        let identities: Vec<_> = events.iter().map(|event| event.identity()).collect();
        let ids: Vec<&str> = identities.iter().map(|identity| identity.as_str()).collect();
        let handled = match self.store.which_are_handled(&ids).await {
            Ok(handled) => handled,
            Err(error) => {
                tracing::debug!(
                    consumer = self.config.name,
                    error = full_text(&error),
                    "it could not be asked which \
                events are handled already; they go on one by one"
                );
                return HashSet::new();
            }
        };
        for event in events {
            match handled.get(event.identity().as_str()) {
                Some(true) => self.skipped(event).await,
                Some(false) => self.say_skipped(event),
                None => continue,
            }
            self.ended(event);
        }
        handled.into_keys().collect()
    }

    fn say_skipped(&self, event: &RawEvent) {
        let id = event.id().as_str();
        self.reporter.meter.duplicate();
        tracing::debug!(consumer = self.config.name, event_id = id, "skipped a duplicate");
    }

    /// The event is handled already. A process that was slow to see that may have recorded a failure.
    pub(super) async fn skipped(&self, event: &RawEvent) {
        let id = event.id().as_str();
        self.say_skipped(event);
        if let Err(error) = self.store.forget_skipped(event.identity().as_str()).await {
            tracing::debug!(consumer = self.config.name, event_id = id, %error, "the record of a failure was not \
            removed for an event that is handled");
        }
    }

    /// An attempt has failed: records it, and says what follows.
    pub(super) async fn failed(
        &self,
        event: &RawEvent,
        error: &InboxError,
        took: Duration,
        alone: bool,
    ) -> Disposition {
        let (text, identity) = (full_text(error), event.identity());
        let blame = self.judge.blame(&identity, error, alone).await;
        self.reporter.meter.failed(blame.fault().unwrap_or_else(|| error.fault()), took);
        self.reporter.error(Some(event.id().as_str()), &text);
        let mut follows = after_failure::at_once(blame, error.is_said_to_be_everybodys());
        loop {
            match follows {
                Follows::Record(record) => match self.record(event, &text, record).await {
                    Ok(recorded) => {
                        let backoff = |times| self.backoff(times);
                        follows = self.patience().after(recorded, error.retry_after(), backoff);
                    }
                    Err(_) if record == (Record::Outage { everybodys: true }) => {
                        follows = Follows::Pause;
                    }
                    Err(error) => return self.unrecorded(event, &text, &error).await,
                },
                Follows::Retry { wait, is_news, after } => {
                    self.killers.ended(&identity);
                    self.say_retry(event, &text, after, wait, is_news);
                    return Disposition::Retry(wait);
                }
                Follows::LetterForGood => return self.failed_for_good(event, error, &text).await,
                Follows::LetterAfter(attempts) => {
                    self.killers.ended(&identity);
                    return self.failed_at_last(event, &text, attempts).await;
                }
                Follows::Pause => {
                    self.killers.unmark(&identity).await;
                    return Disposition::Environment(text);
                }
            }
        }
    }

    /// Records a failure, and returns what the database knows then.
    async fn record(
        &self,
        event: &RawEvent,
        text: &str,
        record: Record,
    ) -> Result<Recorded, sqlx::Error> {
        match record {
            Record::Uncounted { most } => {
                let times = self.store.record_uncounted(event, text).await?;
                Ok(Recorded::Uncounted { times, most })
            }
            Record::Outage { everybodys } => {
                let (times, lasted) = self.store.record_outage(event, text).await?;
                Ok(Recorded::Outage { times, lasted, everybodys })
            }
            Record::Attempt => {
                Ok(Recorded::Attempts(self.store.record_failure(event, text).await?))
            }
        }
    }

    fn patience(&self) -> Patience {
        Patience {
            max_attempts: self.config.max_attempts,
            shortest_wait: self.config.backoff,
            max_outage: self.config.max_outage,
        }
    }

    async fn failed_for_good(
        &self,
        event: &RawEvent,
        error: &InboxError,
        text: &str,
    ) -> Disposition {
        let recorded = matches!(error, InboxError::Ended { committed: true });
        error_or_debug!(
            self.journal.tells(JournalChange::Letter, Some(&event.identity())),
            consumer = self.config.name,
            event_id = event.id().as_str(),
            event_type = event.event_type(),
            error = text,
            "the event failed for good; it is a dead letter now"
        );
        self.bury_as(event, "permanent", text, 1, recorded).await
    }

    async fn failed_at_last(&self, event: &RawEvent, text: &str, attempts: u32) -> Disposition {
        error_or_debug!(
            self.journal.tells(JournalChange::Letter, Some(&event.identity())),
            consumer = self.config.name,
            event_id = event.id().as_str(),
            event_type = event.event_type(),
            attempts,
            error = text,
            "the last attempt failed; the event is a dead letter now"
        );
        self.bury(event, "attempts", text, attempts).await
    }

    /// Logs a failure after which the event is tried again.
    fn say_retry(
        &self,
        event: &RawEvent,
        error: &str,
        recorded: Recorded,
        wait: Duration,
        is_news: bool,
    ) {
        let (consumer, event_id) = (&self.config.name, event.id().as_str());
        let event_type = event.event_type();
        let tells = || is_news && self.journal.tells(JournalChange::Fails, Some(&event.identity()));
        match recorded {
            Recorded::Uncounted { times, most } if is_news => tracing::warn!(
                consumer,
                event_id,
                event_type,
                error,
                left = most - times,
                "a failure that is not counted is repeated; after `left` more it counts as an attempt"
            ),
            Recorded::Uncounted { .. } => {}
            Recorded::Outage { .. } if tells() => tracing::warn!(
                consumer,
                event_id,
                event_type,
                error,
                ?wait,
                "something that the event needs is away; the event waits, and no attempt is counted"
            ),
            Recorded::Outage { .. } => {
                tracing::debug!(consumer, event_id, error, ?wait, "an outage");
            }
            Recorded::Attempts(_) if tells() => tracing::warn!(
                consumer,
                event_id,
                event_type,
                error,
                ?wait,
                "an attempt failed; the event is tried again"
            ),
            Recorded::Attempts(attempts) => {
                tracing::debug!(consumer, event_id, attempts, error, ?wait, "an attempt failed");
            }
        }
    }

    /// Sets a message aside that is not an event.
    pub(super) async fn set_aside(&self, message: &Undecodable) -> Disposition {
        let (letter, error) = (&message.name, &message.error);
        let stored = self.store.set_aside(&message.as_stored()).await;
        if matches!(stored, Ok(LetterStored::Now)) {
            error_or_debug!(
                self.journal.tells(JournalChange::Letter, None),
                consumer = self.config.name,
                letter,
                error,
                "a message is not an event; it is a dead letter now"
            );
        }
        self.buried(stored, letter, "undecodable").await
    }

    /// A failure could not be recorded: the database is away, or refuses the event's id.
    async fn unrecorded(&self, event: &RawEvent, text: &str, error: &sqlx::Error) -> Disposition {
        if is_refused_value(error) {
            return self.bury(event, "permanent", text, 1).await;
        }
        self.unwritten(event.id().as_str(), error).await
    }

    /// What becomes of the event could not be written. While the database is well, that is this event's trouble alone.
    async fn unwritten(&self, id: &str, error: &sqlx::Error) -> Disposition {
        let text = full_text(error);
        if self.store.well().await.is_none() {
            return Disposition::Environment(text);
        }
        let wait = if is_refused(error) { self.config.max_backoff } else { self.backoff(1) };
        if self.journal.tells(JournalChange::Unwritten, None) {
            tracing::error!(
                consumer = self.config.name,
                event_id = id,
                error = text,
                ?wait,
                "the result of an event could not be recorded; the event is tried again"
            );
        }
        Disposition::Retry(wait)
    }

    async fn bury(
        &self,
        event: &RawEvent,
        reason: &str,
        error: &str,
        attempts: u32,
    ) -> Disposition {
        self.bury_as(event, reason, error, attempts, false).await
    }

    /// Makes the event a dead letter. `recorded`: its handler has recorded it as handled, by a commit of its own.
    async fn bury_as(
        &self,
        event: &RawEvent,
        reason: &str,
        error: &str,
        attempts: u32,
        recorded: bool,
    ) -> Disposition {
        let stored = self.store.bury(Burial { event, reason, error, attempts, recorded }).await;
        if matches!(stored, Ok(LetterStored::Now | LetterStored::Before)) {
            self.ended(event);
        }
        self.buried(stored, event.id().as_str(), reason).await
    }

    /// What follows once the letter is stored, or could not be.
    async fn buried(
        &self,
        stored: Result<LetterStored, sqlx::Error>,
        letter: &str,
        reason: &str,
    ) -> Disposition {
        match stored {
            Ok(LetterStored::Now) => {
                self.reporter.meter.dead_letter(reason);
                Disposition::Dead
            }
            Ok(LetterStored::Before) => Disposition::Dead,
            Ok(LetterStored::Not) => {
                let (consumer, error) = (&self.config.name, full_text(&LetterStored::not_stored()));
                tracing::error!(
                    consumer,
                    letter,
                    error,
                    "a dead letter could not be stored; the consumer tries again"
                );
                self.reporter.error(Some(letter), &error);
                Disposition::Retry(self.backoff(MANY))
            }
            Err(error) => self.unwritten(letter, &error).await,
        }
    }

    /// The wait after this many failed attempts.
    fn backoff(&self, attempts: u32) -> Duration {
        let most = self.config.max_backoff;
        ExponentialBuilder::new()
            .with_min_delay(self.config.backoff)
            .with_max_delay(most)
            .with_jitter()
            .without_max_times()
            .build()
            .nth(attempts.saturating_sub(1).min(64) as usize)
            .unwrap_or(most)
    }
}
