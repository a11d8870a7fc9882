//! Testing a saga without servers: given this state, when this event comes, what follows?

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use pillarbox_event::{Context, FromEvent, IntoEvent, RawEvent};
use pillarbox_inbox::HandlerError;

use crate::error::Refused;
use crate::handles::{read_state, settle, write_state};
use crate::instance::{Instance, Status};
use crate::route::Route;
use crate::settings::{NoInstance, Settings};
use crate::state::State;
use crate::step::Step;
use crate::turn::{Due, Settled, Starts, Turn, admission};

/// How many timers may fire in one call of [`Given::elapse`].
const MOST_TIMERS: usize = 10_000;
/// When tests begin: the first moment of 2026.
const BEGINNING: Duration = Duration::from_secs(1_767_225_600);

/// An instance in a test without servers. [`Saga::given`](crate::Saga::given) makes one.
///
/// It decides exactly as the saga does in a consumer: the same handlers, the same rules for events that come twice, too
/// early or too late, and the state is written as JSON and read again between the steps. Time stands still unless
/// [`elapse`](Self::elapse) moves it. There is no database, so `step.tx()` fails.
///
/// ```
/// # use std::time::Duration;
/// # use pillarbox_event::Event;
/// # use pillarbox_inbox::HandlerError;
/// # use pillarbox_saga::{Saga, Status, Step};
/// # #[derive(Event, serde::Serialize, serde::Deserialize)]
/// # #[event(type = "booking.requested", topic = "bookings.requested", key = booking)]
/// # struct Requested { booking: i64 }
/// # #[derive(Event, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
/// # #[event(type = "booking.unpaid", topic = "bookings.unpaid", key = booking)]
/// # struct Unpaid { booking: i64 }
/// # #[derive(Default, serde::Serialize, serde::Deserialize)]
/// # struct Booking {}
/// # impl Booking {
/// #     async fn requested(&mut self, step: &mut Step<'_>, event: Requested) -> Result<(), HandlerError> {
/// #         step.timer("payment", Duration::from_secs(900), Unpaid { booking: event.booking })?;
/// #         Ok(())
/// #     }
/// #     async fn unpaid(&mut self, step: &mut Step<'_>, _: Unpaid) -> Result<(), HandlerError> {
/// #         step.fail("not paid in time");
/// #         Ok(())
/// #     }
/// # }
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let saga = Saga::new("booking").starts(Booking::requested).on(Booking::unpaid);
/// let mut booking = saga.given_nothing();
/// let started = booking.when(Requested { booking: 42 }).await?;
/// assert_eq!(started.timers[0].name, "payment");
///
/// assert!(booking.elapse(Duration::from_secs(899)).await?.is_empty());
/// let unpaid = booking.elapse(Duration::from_secs(1)).await?;
/// assert_eq!(unpaid.len(), 1);
/// assert_eq!(booking.status(), Some(Status::Failed));
/// # Ok::<(), HandlerError>(()) }).unwrap();
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Given<S> {
    settings: Settings,
    routes: Vec<Route<S>>,
    there: Option<There<S>>,
    timers: Vec<Timer>,
    handled: BTreeSet<String>,
    now: SystemTime,
}

/// The instance. Its id is empty until the first event tells it.
struct There<S> {
    instance: Instance,
    state: S,
}

/// A timer that is set.
#[derive(Clone, Debug)]
pub struct Timer {
    /// Its name.
    pub name: String,
    /// When it is due.
    pub due: SystemTime,
    /// The event that comes then.
    pub event: RawEvent,
}

/// What one event did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Happened {
    /// Why the event was not handled. `None`: it was.
    pub ignored: Option<&'static str>,
    /// The events that were published, in their order.
    pub published: Vec<RawEvent>,
    /// The timers that were set.
    pub timers: Vec<Timer>,
    /// The names of the timers that were cancelled or replaced.
    pub cancelled: Vec<String>,
    /// What the history says beside that.
    pub note: Option<String>,
}

impl Happened {
    fn ignored(reason: &'static str) -> Self {
        Self {
            ignored: Some(reason),
            published: Vec::new(),
            timers: Vec::new(),
            cancelled: Vec::new(),
            note: None,
        }
    }

    /// The types of the events that were published, in their order.
    pub fn types(&self) -> Vec<&str> {
        self.published.iter().map(RawEvent::event_type).collect()
    }

    /// The published events that can be read as `E`.
    pub fn published_of<E: FromEvent>(&self) -> Vec<E> {
        self.published.iter().filter_map(|event| E::from_event(event).ok()).collect()
    }
}

impl<S: State> Given<S> {
    pub(crate) fn new(settings: Settings, routes: Vec<Route<S>>, state: Option<S>) -> Self {
        let there = state.map(|state| {
            let instance = Instance { version: 1, ..Instance::new(settings.name, "") };
            There { instance, state }
        });
        let now = SystemTime::UNIX_EPOCH + BEGINNING;
        Self { settings, routes, there, timers: Vec::new(), handled: BTreeSet::new(), now }
    }

    /// The same instance in this step.
    #[must_use]
    pub fn in_step(mut self, step: &str) -> Self {
        if let Some(there) = &mut self.there {
            there.instance.step = step.to_owned();
        }
        self
    }

    /// An event comes. The same event again, with the same id, is ignored, as the inbox does.
    ///
    /// # Errors
    /// What the consumer would see: the error of the handler, or [`Refused`]. Then nothing has changed.
    pub async fn when(&mut self, event: impl IntoEvent) -> Result<Happened, HandlerError> {
        let event = event.into_event()?;
        if self.handled.contains(event.id().as_str()) {
            return Ok(Happened::ignored("ignored: this event had been handled before"));
        }
        let context = Context::of(&event);
        let happened = context.scope(self.handle(&event)).await?;
        self.handled.insert(event.id().to_string());
        Ok(happened)
    }

    /// Time passes, and the timers that become due come, in the order of their times. Returns what each of them did.
    ///
    /// # Errors
    /// The first error of a handler, after which time stands still at that timer, which is still set.
    pub async fn elapse(&mut self, time: Duration) -> Result<Vec<Happened>, HandlerError> {
        let beyond = || HandlerError::permanent("the test's time is beyond the calendar");
        let end = self.now.checked_add(time).ok_or_else(beyond)?;
        let mut happened = Vec::new();
        while let Some(next) = self.next_due(end) {
            if happened.len() >= MOST_TIMERS {
                let endless =
                    format!("{MOST_TIMERS} timers fired: they set each other without end");
                return Err(HandlerError::permanent(endless));
            }
            self.now = self.now.max(next.due);
            happened.push(self.when(&next.event).await?);
            self.timers.retain(|timer| timer.event.id() != next.event.id());
        }
        self.now = end;
        Ok(happened)
    }

    /// The first of those that are due at this time. Of two that are due at once, the one that was set first.
    fn next_due(&self, at: SystemTime) -> Option<Timer> {
        let due = self.timers.iter().filter(|timer| timer.due <= at);
        due.min_by_key(|timer| timer.due).cloned()
    }

    /// The state. `None`: the instance has not been started.
    pub fn state(&self) -> Option<&S> {
        self.there.as_ref().map(|there| &there.state)
    }

    /// The status. `None`: the instance has not been started.
    pub fn status(&self) -> Option<Status> {
        self.there.as_ref().map(|there| there.instance.status)
    }

    /// The step. `None`: the instance has not been started.
    pub fn step(&self) -> Option<&str> {
        self.there.as_ref().map(|there| &*there.instance.step)
    }

    /// The timers that are set.
    pub fn timers(&self) -> &[Timer] {
        &self.timers
    }

    /// The test's time. It begins with the year 2026, and only [`elapse`](Self::elapse) moves it.
    pub fn now(&self) -> SystemTime {
        self.now
    }

    async fn handle(&mut self, event: &RawEvent) -> Result<Happened, HandlerError> {
        let saga = self.settings.name;
        let route = self.route(event)?;
        let timer = self.settings.timer_of(event);
        let id = self
            .settings
            .instance_of(&route, event, timer.as_ref())
            .map_err(NoInstance::into_handler_error)?;
        let starts = route.starts != Starts::Never && timer.is_none();
        let (mut instance, mut state, is_new) = match &self.there {
            Some(there) if there.instance.id.is_empty() || there.instance.id == id => {
                let text = write_state(saga, &there.instance, &there.state)?;
                let state = read_state(saga, &there.instance, &text)?;
                (there.instance.clone(), state, false)
            }
            None if starts => (Instance::new(saga, &id), S::default(), true),
            _ => return Err(HandlerError::transient(Refused::NotThere { saga, id })),
        };
        instance.id = id;
        if let Err(ignored) = admission(&instance, is_new, route.starts, event, timer.as_ref()) {
            return Ok(Happened::ignored(ignored.note()));
        }
        let mut turn = Turn::new(instance, timer.as_ref());
        let mut step = Step { turn: &mut turn, tx: None, event, attempt: 1 };
        route.run.run(&mut state, &mut step, event).await?;
        let settled = settle(saga, turn)?;
        let text = write_state(saga, &settled.instance, &state)?;
        let state = read_state(saga, &settled.instance, &text)?;
        Ok(self.carry_out(settled, state))
    }

    fn route(&self, event: &RawEvent) -> Result<Route<S>, HandlerError> {
        let of = |accepts| self.routes.iter().find(|route| route.accepts == accepts);
        let found = of(Some(event.event_type())).or_else(|| of(None));
        found.cloned().ok_or_else(|| {
            let event_type = event.event_type().to_owned();
            HandlerError::permanent(Refused::NoHandler { saga: self.settings.name, event_type })
        })
    }

    fn carry_out(&mut self, settled: Settled, state: S) -> Happened {
        let Settled { mut instance, published, timers, cancelled, note, .. } = settled;
        self.timers.retain(|timer| {
            cancelled.iter().all(|gone| *gone.event_id != *timer.event.id().as_str())
        });
        let set: Vec<Timer> = timers
            .into_iter()
            .map(|timer| {
                let due = match timer.due {
                    // A checked duration stays within the calendar.
                    Due::In(wait) => self.now.checked_add(wait).unwrap_or(self.now),
                    Due::At(time) => time.max(self.now),
                };
                Timer { name: timer.name, due, event: timer.event.caused_by_current() }
            })
            .collect();
        self.timers.extend(set.iter().cloned());
        instance.version += 1;
        self.there = Some(There { instance, state });
        Happened {
            ignored: None,
            published: published.into_iter().map(RawEvent::caused_by_current).collect(),
            timers: set,
            cancelled: cancelled.into_iter().map(|timer| timer.name).collect(),
            note,
        }
    }
}

impl<S> std::fmt::Debug for Given<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let instance = self.there.as_ref().map(|there| &there.instance);
        f.debug_struct("Given")
            .field("saga", &self.settings.name)
            .field("status", &instance.map(|instance| instance.status))
            .field("step", &instance.map(|instance| &instance.step))
            .field("timers", &self.timers)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}
