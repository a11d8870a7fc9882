//! Handling one event of a saga, in the inbox's transaction: load and lock, decide, handle, write.

use std::marker::PhantomData;
use std::sync::Arc;

use pillarbox_event::error::without_values;
use pillarbox_event::{DecodeError, EventId, FromEvent, RawEvent};
use pillarbox_inbox::handler::FromHandling;
use pillarbox_inbox::{Handler, HandlerError, Handling, Tx};

use crate::error::Refused;
use crate::instance::{Instance, Status};
use crate::metrics::{Counted, count};
use crate::route::Route;
use crate::settings::{NoInstance, Settings};
use crate::state::State;
use crate::step::Step;
use crate::store::Locked;
use crate::turn::{Due, Settled, Starts, Turn, admission};

/// An event of the type that `E` reads, which is read later.
pub(crate) struct Incoming<E> {
    event: Arc<RawEvent>,
    attempt: u32,
    of: PhantomData<fn() -> E>,
}

impl<E: FromEvent + Send + 'static> FromHandling for Incoming<E> {
    const ACCEPTS: Option<&'static str> = E::ACCEPTS;
    const TOPIC: Option<&'static str> = E::TOPIC;

    fn from_handling(handling: &Handling) -> Result<Self, DecodeError> {
        let event = handling.event().clone();
        Ok(Self { event, attempt: handling.attempt(), of: PhantomData })
    }
}

/// The handler of one type of event.
pub(crate) struct Handles<S, E> {
    pub(crate) settings: Arc<Settings>,
    pub(crate) route: Route<S>,
    pub(crate) event: PhantomData<fn(E)>,
}

impl<S: State, E: FromEvent + Send + 'static> Handler<Incoming<E>> for Handles<S, E> {
    async fn handle(&self, tx: &mut Tx, incoming: Incoming<E>) -> Result<(), HandlerError> {
        let Incoming { event, attempt, .. } = incoming;
        let settings = &*self.settings;
        let timer = settings.timer_of(&event);
        let id = settings
            .instance_of(&self.route, &event, timer.as_ref())
            .map_err(NoInstance::into_handler_error)?;
        let starts = self.route.starts != Starts::Never && timer.is_none();
        let Some(Locked { instance, state }) = settings.lock(tx, &id, starts).await? else {
            return Err(self.not_there(id));
        };
        let admitted =
            admission(&instance, state.is_none(), self.route.starts, &event, timer.as_ref());
        if let Err(ignored) = admitted {
            settings.note(tx, &instance, &event, ignored.note()).await?;
            count(settings.name, &instance.step, Counted::Ignored(ignored));
            return Ok(());
        }
        let mut state = match &state {
            Some(text) => read_state(settings.name, &instance, text)?,
            None => S::default(),
        };
        let before = instance.status;
        let mut turn = Turn::new(instance, timer.as_ref());
        let mut step = Step { turn: &mut turn, tx: Some(&mut *tx), event: &event, attempt };
        self.route.run.run(&mut state, &mut step, &event).await?;
        let settled = settle(settings.name, turn)?;
        let state = write_state(settings.name, &settled.instance, &state)?;
        publish(settings, tx, &settled).await?;
        settings.save(tx, &settled, &state, &event).await?;
        count(settings.name, &settled.step_before, Counted::of(before, settled.instance.status));
        Ok(())
    }
}

impl<S, E> Handles<S, E> {
    /// This is the same for a timer, although its instance was there once. Nothing is left of an instance that was
    /// removed, so its absence does not prove that it has ended: the database may have been restored to an older state,
    /// or be another one.
    fn not_there(&self, id: String) -> HandlerError {
        let saga = self.settings.name;
        count(saga, "", Counted::NotThere);
        HandlerError::transient(Refused::NotThere { saga, id })
    }
}

impl NoInstance {
    pub(crate) fn into_handler_error(self) -> HandlerError {
        match self {
            Self::Decode(error) => HandlerError::permanent(error),
            Self::Refused(error) => HandlerError::permanent(error),
        }
    }
}

/// Reads the state of an instance.
pub(crate) fn read_state<S: State>(
    saga: &'static str,
    instance: &Instance,
    text: &str,
) -> Result<S, HandlerError> {
    serde_json::from_str(text).map_err(|error| {
        HandlerError::permanent(Refused::State {
            saga,
            id: instance.id.clone(),
            version: instance.version,
            step: instance.step.clone(),
            problem: without_values(&error),
        })
    })
}

pub(crate) fn write_state<S: State>(
    saga: &'static str,
    instance: &Instance,
    state: &S,
) -> Result<String, HandlerError> {
    serde_json::to_string(state).map_err(|error| {
        let (id, problem) = (instance.id.clone(), format!("its state is no JSON: {error}"));
        HandlerError::permanent(Refused::Row { saga, id, what: "written", problem })
    })
}

pub(crate) fn settle(saga: &'static str, turn: Turn) -> Result<Settled, HandlerError> {
    let id = turn.instance.id.clone();
    turn.settle().map_err(|error| {
        let problem = format!("a compensation cannot be published: {error}");
        HandlerError::permanent(Refused::Row { saga, id, what: "read", problem })
    })
}

/// Writes the events and the timers of a step, and takes back timers.
async fn publish(settings: &Settings, tx: &mut Tx, settled: &Settled) -> Result<(), HandlerError> {
    let outbox = &settings.outbox;
    outbox.publish_all(tx, settled.published.iter()).await?;
    for timer in &settled.cancelled {
        // One that has left already is ignored when it comes.
        outbox.cancel(tx, &EventId::parse(&*timer.event_id)?).await?;
    }
    for timer in &settled.timers {
        match timer.due {
            Due::In(wait) => outbox.publish_in(tx, &timer.event, wait).await?,
            Due::At(time) => outbox.publish_at(tx, &timer.event, time).await?,
        };
    }
    Ok(())
}

impl Counted {
    fn of(before: Status, after: Status) -> Self {
        if before == after { Self::Handled } else { Self::Became(after) }
    }
}
