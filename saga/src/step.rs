//! What a handler of a saga can do.

use std::fmt;
use std::time::{Duration, SystemTime};

use pillarbox_event::{EventId, IntoEvent, RawEvent};
use pillarbox_inbox::Tx;

use crate::instance::Status;
use crate::turn::{Due, StepError, Turn};

/// One step of an instance: what a handler does beside changing the state.
///
/// Nothing takes effect before the handler has returned success. Then the state, what is published here, the timers and
/// the record that the event was handled are written in one transaction. If the handler fails, nothing of it is.
#[must_use = "a step does nothing by itself"]
pub struct Step<'a> {
    pub(crate) turn: &'a mut Turn,
    /// `None` in a test without a database.
    pub(crate) tx: Option<&'a mut Tx>,
    pub(crate) event: &'a RawEvent,
    pub(crate) attempt: u32,
}

impl Step<'_> {
    /// Publishes an event when the step is done, and returns its id. Events leave in the order of these calls.
    ///
    /// # Errors
    /// [`StepError::Event`] and [`StepError::EventId`].
    pub fn publish(&mut self, event: impl IntoEvent) -> Result<EventId, StepError> {
        self.turn.publish(event.into_event()?)
    }

    /// Sets a timer: the saga gets this event after `wait`, counted from the end of this step by the database's clock.
    /// It replaces the timer of this name. A timer that was replaced or cancelled never reaches the saga, even if its
    /// event was on its way already. An event without a key gets the instance's id as its key.
    ///
    /// A saga handles the event of a timer like any other, so it needs a handler for it, and the event's topic must be
    /// one that the consumer's stream takes.
    ///
    /// # Errors
    /// [`StepError::Due`] if `wait` is longer than 7,000 years; [`StepError::TimerName`], [`StepError::TooMany`],
    /// [`StepError::Event`] and [`StepError::EventId`]. Then the timer of this name is as it was.
    pub fn timer(
        &mut self,
        name: &str,
        wait: Duration,
        event: impl IntoEvent,
    ) -> Result<(), StepError> {
        self.turn.timer(name, Due::In(wait), event.into_event()?)
    }

    /// Sets a timer that is due at a time, like [`timer`](Self::timer). A time in the past is due now.
    ///
    /// # Errors
    /// [`StepError::Due`] if the time is not before the year 10000; otherwise as for [`timer`](Self::timer).
    pub fn timer_at(
        &mut self,
        name: &str,
        time: impl Into<SystemTime>,
        event: impl IntoEvent,
    ) -> Result<(), StepError> {
        self.turn.timer(name, Due::At(time.into()), event.into_event()?)
    }

    /// Cancels the timer of this name, and returns whether it was set. It never reaches the saga then, even if its
    /// event was on its way already.
    pub fn cancel(&mut self, name: &str) -> bool {
        self.turn.cancel(name)
    }

    /// Keeps an event that undoes what this step does. If the saga [fails](Self::fail), all of them are published, the
    /// newest first. If it has failed already, this one is published now. Returns the event's id.
    ///
    /// Call it where you ask for something, not where the answer comes, and let the undoing take "I have not done that"
    /// for done: then nothing is left over if the answer comes late or never.
    ///
    /// # Errors
    /// [`StepError::Event`], [`StepError::EventId`] and [`StepError::TooMany`].
    pub fn compensate(&mut self, event: impl IntoEvent) -> Result<EventId, StepError> {
        self.turn.compensate(event.into_event()?)
    }

    /// The process has failed for this reason: publishes the compensations, the newest first, and cancels the timers
    /// that are set so far. The instance then is [compensating](Status::Compensating), and a later step ends it by
    /// [`complete`](Self::complete). If there is nothing to compensate, or if this step calls `complete` too, it has
    /// ended as [failed](Status::Failed). If it has failed before, only the reason is noted.
    pub fn fail(&mut self, reason: &str) {
        self.turn.fail(reason);
    }

    /// The instance ends: as [completed](Status::Completed), or as [failed](Status::Failed) if it was compensating or
    /// fails in this step. Its timers are cancelled, also one that this step sets. Events that come for it later are
    /// counted and acknowledged.
    pub fn complete(&mut self) {
        self.turn.complete();
    }

    /// Gives the place where the instance is a name, such as `paying`. Operators see it, and metrics have it as a
    /// label, so use few names. It begins as `started`. Names longer than 255 characters are cut off.
    pub fn enter(&mut self, step: &str) {
        self.turn.enter(step);
    }

    /// Adds a line to what the history says about this step.
    pub fn note(&mut self, note: &str) {
        self.turn.note(note);
    }

    /// The transaction, for rows of the service in the same database.
    ///
    /// # Errors
    /// [`StepError::NoDatabase`] in a test without a database.
    pub fn tx(&mut self) -> Result<&mut Tx, StepError> {
        self.tx.as_deref_mut().ok_or(StepError::NoDatabase)
    }

    /// The instance's id.
    pub fn id(&self) -> &str {
        &self.turn.instance.id
    }

    /// The instance's status. It is [`Status::Running`] or [`Status::Compensating`].
    pub fn status(&self) -> Status {
        self.turn.instance.status
    }

    /// Where the instance is, as [`enter`](Self::enter) last said.
    pub fn name(&self) -> &str {
        &self.turn.instance.step
    }

    /// Whether this event has started the instance.
    pub fn is_first(&self) -> bool {
        self.turn.instance.version == 0
    }

    /// The event that is handled, with its id, key and headers.
    pub fn event(&self) -> &RawEvent {
        self.event
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

impl fmt::Debug for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instance = &self.turn.instance;
        f.debug_struct("Step")
            .field("saga", &instance.saga)
            .field("id", &instance.id)
            .field("event", &self.event)
            .finish_non_exhaustive()
    }
}
