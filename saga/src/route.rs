//! The handlers of a saga.

use std::future::Future;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use pillarbox_event::{DecodeError, FromEvent, RawEvent};
use pillarbox_inbox::{HandlerError, IntoHandlerError};

use crate::step::Step;
use crate::turn::Starts;

/// A function that handles an event of a saga:
/// `async fn(&mut S, &mut Step<'_>, E) -> Result<(), impl IntoHandlerError>`, where `S` is the state. It is implemented
/// for all that fit, usually methods of `S`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of a saga with the state `{S}`",
    label = "this is not a handler of this saga",
    note = "a handler is a function `async fn(state: &mut {S}, step: &mut Step<'_>, event: E) -> Result<(), HandlerError>`, \
            usually a method with `&mut self`, where `E` is a type with `#[derive(Event, serde::Deserialize)]` or a \
            `RawEvent`",
    note = "check that it takes `&mut self` (not `&self`) and `&mut Step<'_>`, and that its error converts into \
            `HandlerError`"
)]
pub trait StepFunction<'a, S, E>: Send + Sync {
    /// Its error.
    type Error: IntoHandlerError;
    /// What it returns.
    type Future: Future<Output = Result<(), Self::Error>> + Send + 'a;

    /// Calls it.
    fn call(&self, state: &'a mut S, step: &'a mut Step<'a>, event: E) -> Self::Future;
}

impl<'a, F, Fut, S: 'a, E, Failure> StepFunction<'a, S, E> for F
where
    F: Fn(&'a mut S, &'a mut Step<'a>, E) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), Failure>> + Send + 'a,
    Failure: IntoHandlerError,
{
    type Error = Failure;
    type Future = Fut;

    fn call(&self, state: &'a mut S, step: &'a mut Step<'a>, event: E) -> Fut {
        self(state, step, event)
    }
}

/// One type of event, and what a saga does with it.
pub(crate) struct Route<S> {
    /// The type. `None`: every type.
    pub(crate) accepts: Option<&'static str>,
    pub(crate) starts: Starts,
    pub(crate) run: Arc<dyn Run<S>>,
}

impl<S> Clone for Route<S> {
    fn clone(&self) -> Self {
        Self { accepts: self.accepts, starts: self.starts, run: self.run.clone() }
    }
}

/// A handler of a type that is not named any more.
pub(crate) trait Run<S>: Send + Sync {
    /// The id of the instance that an event is for. `None`: it names none.
    fn instance_id(&self, event: &RawEvent) -> Result<Option<String>, DecodeError>;

    fn run<'a>(
        &'a self,
        state: &'a mut S,
        step: &'a mut Step<'a>,
        event: &'a RawEvent,
    ) -> BoxFuture<'a, Result<(), HandlerError>>;
}

/// Tells the instance of an event.
pub(crate) type Correlate<E> = Box<dyn Fn(&E) -> String + Send + Sync>;

/// A handler of events of type `E`.
pub(crate) struct Typed<E, F> {
    pub(crate) function: F,
    /// `None`: by the event's key.
    pub(crate) correlate: Option<Correlate<E>>,
}

impl<S, E, F> Run<S> for Typed<E, F>
where
    S: Send + 'static,
    E: FromEvent + Send + 'static,
    F: for<'a> StepFunction<'a, S, E>,
{
    fn instance_id(&self, event: &RawEvent) -> Result<Option<String>, DecodeError> {
        match &self.correlate {
            Some(correlate) => Ok(Some(correlate(&E::from_event(event)?))),
            None => Ok(event.key().map(str::to_owned)),
        }
    }

    fn run<'a>(
        &'a self,
        state: &'a mut S,
        step: &'a mut Step<'a>,
        event: &'a RawEvent,
    ) -> BoxFuture<'a, Result<(), HandlerError>> {
        match E::from_event(event) {
            Ok(event) => self
                .function
                .call(state, step, event)
                .map(|done| done.map_err(IntoHandlerError::into_handler_error))
                .boxed(),
            Err(error) => ready(Err(HandlerError::permanent(error))).boxed(),
        }
    }
}
