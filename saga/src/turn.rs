//! What one event does to an instance: the decisions, without I/O and without a clock.
//!
//! [`admission`] decides whether an event is handled at all. A [`Turn`] collects what the handler asks for, and
//! [`Turn::settle`] says what follows from all of it. The database's side (`handles.rs`) and the tests' side
//! (`given.rs`) both carry out the same [`Settled`].

use std::time::{Duration, SystemTime};

use pillarbox_event::{EventError, EventId, RawEvent, header};
use pillarbox_outbox::schedule::{LONGEST, YEAR_10000};

use crate::instance::{Instance, PendingTimer, Status, StoredEvent, Unreadable};

/// The saga whose timer an event is.
pub(crate) const SAGA_HEADER: &str = "pillarbox-saga";
/// The instance whose timer it is.
pub(crate) const INSTANCE_HEADER: &str = "pillarbox-saga-id";
/// The timer's name.
pub(crate) const TIMER_HEADER: &str = "pillarbox-saga-timer";

/// How many timers an instance may have, and how many compensations.
pub const MOST: usize = 100;
/// The longest name of a timer or a step, in bytes.
const LONGEST_NAME: usize = 255;
/// How many characters of a reason are kept.
const LONGEST_NOTE: usize = 2_000;

/// Why a step cannot do what it was asked for. Nothing was recorded, and the step may go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The event is refused.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The event's id is not a UUID. The outbox holds only events whose id is one.
    #[error(
        "event id {0:?} is not a UUID, and the outbox takes only UUIDs; leave the id out to get a new one"
    )]
    EventId(String),
    /// A timer's name cannot be used.
    #[error("a timer's name must have 1 to 255 bytes, without control characters; {0:?} has not")]
    TimerName(String),
    /// The timer would be due beyond the calendar.
    #[error(
        "timer {name:?} cannot be due {due}: a due time must be before the year 10000, and a duration at most 7,000 \
         years; give an earlier time or a shorter duration"
    )]
    Due {
        /// The timer's name.
        name: String,
        /// When it would be due.
        due: String,
    },
    /// The instance has as many timers or compensations as it may have.
    #[error("an instance of a saga has at most {MOST} {0}; use fewer, or reuse their names")]
    TooMany(&'static str),
    /// The step runs in a test without a database.
    #[error(
        "this step runs without a database: test a step that uses `step.tx()` with a consumer or an InboxLayer"
    )]
    NoDatabase,
}

/// When a timer is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    In(Duration),
    At(SystemTime),
}

impl Due {
    fn check(self, name: &str) -> Result<(), StepError> {
        let beyond = |due| Err(StepError::Due { name: name.to_owned(), due });
        match self {
            Self::In(wait) if wait > LONGEST => beyond(format!("in {} s", wait.as_secs())),
            Self::In(_) => Ok(()),
            Self::At(time) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                match since.as_secs() {
                    beyond_it @ YEAR_10000.. => beyond(format!("{beyond_it} s after 1970")),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// A timer that a step sets.
#[derive(Clone, Debug)]
pub(crate) struct NewTimer {
    pub(crate) name: String,
    pub(crate) due: Due,
    pub(crate) event: RawEvent,
}

/// Whether events of a type start instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Starts {
    /// They are for instances that are there.
    Never,
    /// They start an instance; one that is there has been started before.
    New,
    /// They start an instance, or go on with one that is there.
    NewOrOld,
}

/// The timer that an event is, as its headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimerMark {
    pub(crate) id: String,
    pub(crate) name: String,
}

impl TimerMark {
    /// `None` if the event is not a timer of a saga with one of these names.
    pub(crate) fn of<'n>(
        event: &RawEvent,
        mut names: impl Iterator<Item = &'n str>,
    ) -> Option<Self> {
        let saga = event.header(SAGA_HEADER)?;
        let text = |header| event.header(header).map(str::to_owned);
        let mark = Self { id: text(INSTANCE_HEADER)?, name: text(TIMER_HEADER)? };
        names.any(|name| name == saga).then_some(mark)
    }
}

/// Why an event for an instance that is there is not handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ignored {
    Ended,
    AlreadyStarted,
    ReplacedTimer,
}

impl Ignored {
    pub(crate) const fn note(self) -> &'static str {
        match self {
            Self::Ended => "ignored: the instance had ended",
            Self::AlreadyStarted => "ignored: the instance had been started before",
            Self::ReplacedTimer => "ignored: this timer had been cancelled or replaced",
        }
    }
}

/// Whether an event is handled by an instance, which `is_new` if this event has started it.
pub(crate) fn admission(
    instance: &Instance,
    is_new: bool,
    starts: Starts,
    event: &RawEvent,
    timer: Option<&TimerMark>,
) -> Result<(), Ignored> {
    let is_set = |mark: &TimerMark| {
        let is_it =
            |timer: &PendingTimer| timer.name == mark.name && timer.event_id == event.id().as_str();
        instance.timers.iter().any(is_it)
    };
    if instance.status.is_ended() {
        return Err(Ignored::Ended);
    }
    if timer.is_some_and(|mark| !is_set(mark)) {
        return Err(Ignored::ReplacedTimer);
    }
    if starts == Starts::New && !is_new && timer.is_none() {
        return Err(Ignored::AlreadyStarted);
    }
    Ok(())
}

/// What a handler has asked for so far.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) instance: Instance,
    status_before: Status,
    step_before: String,
    published: Vec<RawEvent>,
    timers: Vec<NewTimer>,
    cancelled: Vec<PendingTimer>,
    completes: bool,
    notes: Vec<String>,
}

/// What follows from a turn.
#[derive(Debug)]
pub(crate) struct Settled {
    /// As it is afterwards. Its version is still the one before.
    pub(crate) instance: Instance,
    pub(crate) step_before: String,
    pub(crate) published: Vec<RawEvent>,
    pub(crate) timers: Vec<NewTimer>,
    /// Timers that were there before and are not any more.
    pub(crate) cancelled: Vec<PendingTimer>,
    pub(crate) note: Option<String>,
}

impl Turn {
    /// The turn of an event, which may be this timer.
    pub(crate) fn new(mut instance: Instance, timer: Option<&TimerMark>) -> Self {
        if let Some(mark) = timer {
            instance.timers.retain(|timer| timer.name != mark.name);
        }
        Self {
            status_before: instance.status,
            step_before: instance.step.clone(),
            instance,
            published: Vec::new(),
            timers: Vec::new(),
            cancelled: Vec::new(),
            completes: false,
            notes: Vec::new(),
        }
    }

    pub(crate) fn enter(&mut self, step: &str) {
        self.instance.step = kept(step, LONGEST_NAME);
    }

    pub(crate) fn publish(&mut self, event: RawEvent) -> Result<EventId, StepError> {
        let event = publishable(event)?;
        let id = event.id().clone();
        self.published.push(event);
        Ok(id)
    }

    pub(crate) fn timer(&mut self, name: &str, due: Due, event: RawEvent) -> Result<(), StepError> {
        if !(1..=LONGEST_NAME).contains(&name.len()) || name.chars().any(char::is_control) {
            return Err(StepError::TimerName(name.chars().take(60).collect()));
        }
        due.check(name)?;
        let (id, event_type, topic, key, headers, payload) = publishable(event)?.into_parts();
        // Events of one instance keep their order by their key.
        let key = key.or_else(|| Some(self.instance.id.clone()));
        let event = RawEvent::from_parts(id, event_type, topic, key, headers, payload)?
            .with_header(SAGA_HEADER, &self.instance.saga)?
            .with_header(INSTANCE_HEADER, &self.instance.id)?
            .with_header(TIMER_HEADER, name)?;
        self.cancel(name);
        if self.instance.timers.len() + self.timers.len() >= MOST {
            return Err(StepError::TooMany("timers"));
        }
        self.timers.push(NewTimer { name: name.to_owned(), due, event });
        Ok(())
    }

    /// Whether there was a timer of this name.
    pub(crate) fn cancel(&mut self, name: &str) -> bool {
        let before = self.timers.len();
        self.timers.retain(|timer| timer.name != name);
        let was_new = self.timers.len() < before;
        let is_it = |timer: &mut PendingTimer| timer.name == name;
        let cancelled: Vec<_> = self.instance.timers.extract_if(.., is_it).collect();
        let was_there = !cancelled.is_empty();
        self.cancelled.extend(cancelled);
        was_there || was_new
    }

    fn cancel_all(&mut self) {
        self.timers.clear();
        self.cancelled.append(&mut self.instance.timers);
    }

    pub(crate) fn compensate(&mut self, event: RawEvent) -> Result<EventId, StepError> {
        if self.instance.compensations.len() >= MOST {
            return Err(StepError::TooMany("compensations"));
        }
        let event = publishable(event)?;
        let id = event.id().clone();
        self.instance.compensations.push(StoredEvent::of(event));
        Ok(id)
    }

    pub(crate) fn fail(&mut self, reason: &str) {
        let reason = kept(reason, LONGEST_NOTE);
        self.notes.push(format!("failed: {reason}"));
        if self.instance.status == Status::Running {
            self.instance.status = Status::Compensating;
            self.instance.failure = Some(reason);
            self.cancel_all();
        }
    }

    pub(crate) fn complete(&mut self) {
        self.completes = true;
    }

    /// Drops the compensations that have not been published.
    pub(crate) fn forget_compensations(&mut self) {
        self.instance.compensations.clear();
    }

    pub(crate) fn note(&mut self, note: &str) {
        self.notes.push(kept(note, LONGEST_NOTE));
    }

    /// What follows from all that was asked for.
    ///
    /// If the instance fails or has failed before, all compensations are published, the newest first. One that fails
    /// without any has nothing to wait for, and has ended. Ending cancels the timers, also those that were set in this
    /// turn.
    pub(crate) fn settle(mut self) -> Result<Settled, Unreadable> {
        if self.instance.status == Status::Compensating {
            let all = std::mem::take(&mut self.instance.compensations);
            let waits_for_nothing = all.is_empty() && self.status_before == Status::Running;
            for event in all.into_iter().rev() {
                self.published.push(event.into_event()?);
            }
            if self.completes || waits_for_nothing {
                self.instance.status = Status::Failed;
            }
        } else if self.completes {
            self.instance.status = Status::Completed;
            self.instance.compensations.clear();
        }
        if self.instance.status.is_ended() {
            for timer in &self.timers {
                self.notes.push(format!(
                    "timer {:?} was not set, because the instance ended",
                    timer.name
                ));
            }
            self.cancel_all();
        }
        let set = self.timers.iter().map(|timer| PendingTimer {
            name: timer.name.clone(),
            event_id: timer.event.id().to_string(),
        });
        self.instance.timers.extend(set);
        Ok(Settled {
            instance: self.instance,
            step_before: self.step_before,
            published: self.published,
            timers: self.timers,
            cancelled: self.cancelled,
            note: (!self.notes.is_empty()).then(|| kept(&self.notes.join("; "), LONGEST_NOTE)),
        })
    }
}

/// Only events with a UUID can be written to the outbox.
fn publishable(event: RawEvent) -> Result<RawEvent, StepError> {
    match event.id().as_uuid() {
        Some(_) => Ok(event),
        None => Err(StepError::EventId(event.id().to_string())),
    }
}

/// A text that Postgres can keep, and no longer than this.
fn kept(text: &str, longest: usize) -> String {
    text.chars().filter(|c| *c != '\0').take(longest).collect()
}

/// The id of an instance: 1 to 255 bytes without control characters, as the key of an event.
///
/// # Errors
/// The text, if it cannot be one.
pub(crate) fn instance_id(id: String) -> Result<String, String> {
    let is_fine = (1..=255).contains(&id.len())
        && !id.chars().any(char::is_control)
        && header::validate_value(INSTANCE_HEADER, &id).is_ok();
    if is_fine { Ok(id) } else { Err(id.chars().take(60).collect()) }
}
