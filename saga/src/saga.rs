//! A saga: its name, its handlers and its settings.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use pillarbox_event::FromEvent;
use pillarbox_inbox::Router;
use pillarbox_inbox::handler::Struct;
use pillarbox_inbox::router::Handlers;
use pillarbox_outbox::Outbox;
use pillarbox_outbox::schedule::LONGEST;

use crate::given::Given;
use crate::handles::{Handles, Incoming};
use crate::route::{Route, StepFunction, Typed};
use crate::settings::Settings;
use crate::state::State;
use crate::turn::Starts;

type Add<S> = fn(Router, Arc<Settings>, Route<S>) -> Router;

/// A saga with the state `S`: a process over many events, one instance of it for each order, booking or the like.
///
/// The crate's documentation has an example. Hand the saga to a consumer by
/// [`Consumer::with`](https://docs.rs/pillarbox-consumer), or to a router by [`Router::with`]. It must have a handler
/// for each type of event that is for it: those that start it, the answers that it waits for, and its timers.
#[must_use = "a saga handles nothing before a consumer has it"]
pub struct Saga<S> {
    settings: Settings,
    routes: Vec<(Route<S>, Add<S>)>,
}

impl<S: State> Saga<S> {
    /// A saga of this name, without handlers. The name is stored with each instance, so it must not change: see
    /// [`formerly`](Self::formerly). It must have 1 to 255 characters, none of them a control character.
    pub fn new(name: &'static str) -> Self {
        Self { settings: Settings::new(name), routes: Vec::new() }
    }

    /// Adds a handler of events that start an instance. The instance's id is the event's key.
    ///
    /// If there is an instance with this id already, the event is counted and acknowledged, and the handler does not
    /// run. So of two such events at once, one starts the instance.
    pub fn starts<E, F>(self, handler: F) -> Self
    where
        E: FromEvent + Send + 'static,
        F: for<'a> StepFunction<'a, S, E> + 'static,
    {
        self.add(Starts::New, Typed { function: handler, correlate: None })
    }

    /// Adds a handler of events that start an instance, or go on with the one that is there: for events of which any
    /// may come first. [`Step::is_first`](crate::Step::is_first) tells which it is.
    pub fn starts_or_continues<E, F>(self, handler: F) -> Self
    where
        E: FromEvent + Send + 'static,
        F: for<'a> StepFunction<'a, S, E> + 'static,
    {
        self.add(Starts::NewOrOld, Typed { function: handler, correlate: None })
    }

    /// Adds a handler of events for an instance that is there. The instance's id is the event's key.
    ///
    /// If there is no such instance yet, the event is tried again like after any transient failure, and becomes a dead
    /// letter after the last attempt. Events of its key wait behind it meanwhile, if the consumer keeps the order of
    /// keys. If the event that starts the instance may be among them, use
    /// [`starts_or_continues`](Self::starts_or_continues) for both.
    pub fn on<E, F>(self, handler: F) -> Self
    where
        E: FromEvent + Send + 'static,
        F: for<'a> StepFunction<'a, S, E> + 'static,
    {
        self.add(Starts::Never, Typed { function: handler, correlate: None })
    }

    /// Like [`starts`](Self::starts), and `by` tells the instance's id.
    pub fn starts_by<E, F, I>(self, by: fn(&E) -> I, handler: F) -> Self
    where
        E: FromEvent + Send + 'static,
        F: for<'a> StepFunction<'a, S, E> + 'static,
        I: ToString + 'static,
    {
        let correlate = Some(Box::new(move |event: &E| by(event).to_string()) as _);
        self.add(Starts::New, Typed { function: handler, correlate })
    }

    /// Like [`on`](Self::on), and `by` tells the instance's id, for events whose key is something else.
    pub fn on_by<E, F, I>(self, by: fn(&E) -> I, handler: F) -> Self
    where
        E: FromEvent + Send + 'static,
        F: for<'a> StepFunction<'a, S, E> + 'static,
        I: ToString + 'static,
    {
        let correlate = Some(Box::new(move |event: &E| by(event).to_string()) as _);
        self.add(Starts::Never, Typed { function: handler, correlate })
    }

    fn add<E, F>(mut self, starts: Starts, typed: Typed<E, F>) -> Self
    where
        E: FromEvent + Send + 'static,
        F: for<'a> StepFunction<'a, S, E> + 'static,
    {
        let route = Route { accepts: E::ACCEPTS, starts, run: Arc::new(typed) };
        let add: Add<S> = |router, settings, route| {
            router.on::<Incoming<E>, Struct>(Handles { settings, route, event: PhantomData })
        };
        self.routes.push((route, add));
        self
    }

    /// The name that this saga had before. Instances that are stored under it are taken over, with their timers and
    /// their history, when their next event comes. Stop all processes that still use the old name first.
    pub fn formerly(mut self, name: &'static str) -> Self {
        self.settings.formerly.push(name);
        self
    }

    /// How long an instance should take at most. One that takes longer is overdue: metrics, `pillarbox sagas list
    /// --overdue` and an alert show it. Nothing else happens: set timers for what the process itself must do. The
    /// default is no deadline, and one longer than 7,000 years means none.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = (deadline <= LONGEST).then_some(deadline);
        self
    }

    /// How long an instance and its history are kept after its end; 30 days by default. Longer than 7,000 years means
    /// for ever. Keep them for as long as late events may come: for an instance that was removed, they wait as for one
    /// that is not there yet, and become dead letters in the end; so do its timers that were on their way. Whenever an
    /// instance ends, up to 20 old ones are removed.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.settings.retention = (retention <= LONGEST).then_some(retention);
        self
    }

    /// How many entries of an instance's history are kept: the first, and this many of the newest. The default is 200,
    /// and the least is 1.
    pub fn history(mut self, entries: u32) -> Self {
        self.settings.history = entries.max(1);
        self
    }

    /// The outbox into which the saga publishes. The saga's tables are in its schema, which must also be the
    /// consumer's. The default is `Outbox::new()`, in schema `pillarbox`.
    pub fn outbox(mut self, outbox: Outbox) -> Self {
        self.settings = self.settings.outbox(outbox);
        self
    }

    /// A test without servers: an instance that is running with this state. See [`Given`].
    pub fn given(&self, state: S) -> Given<S> {
        self.given_some(Some(state))
    }

    /// A test without servers: no instance yet. See [`Given`].
    pub fn given_nothing(&self) -> Given<S> {
        self.given_some(None)
    }

    fn given_some(&self, state: Option<S>) -> Given<S> {
        let routes = self.routes.iter().map(|(route, _)| route.clone()).collect();
        Given::new(self.settings.clone(), routes, state)
    }
}

impl<S: State> Handlers for Saga<S> {
    fn add_to(self, router: Router) -> Router {
        let settings = Arc::new(self.settings);
        let add = |router, (route, add): (Route<S>, Add<S>)| add(router, settings.clone(), route);
        self.routes.into_iter().fold(router, add)
    }
}

impl<S> fmt::Debug for Saga<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events: Vec<_> = self.routes.iter().map(|(route, _)| route.accepts).collect();
        f.debug_struct("Saga")
            .field("name", &self.settings.name)
            .field("events", &events)
            .finish_non_exhaustive()
    }
}
