//! Handlers of events, which a service writes.

use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;

use pillarbox_event::{Context, DecodeError, EventId, FromEvent, RawEvent};

use crate::delivery::Handling;
use crate::error::HandlerError;
use crate::tx::Tx;

/// Handles events of one type. A plain function is a handler, too:
///
/// ```
/// use pillarbox_event::RawEvent;
/// use pillarbox_inbox::{HandlerError, Router, Tx};
///
/// async fn count(tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
///     sqlx::query("update counts set events = events + 1").execute(&mut **tx).await?;
///     Ok(())
/// }
///
/// let router = Router::new().on(count);
/// ```
///
/// It takes a typed [`Event`](pillarbox_event::Event) that can be deserialized, a [`RawEvent`], or either as
/// [`Received`]. Its error is a [`HandlerError`], or anything that converts into one.
///
/// A closure that captures something is no handler, because stable Rust cannot say that its future is `Send`. The
/// compiler then says that the closure "captures state from its environment", or that a "lifetime may not live long
/// enough". Give the function its state by [`with_state`], or implement this trait for a struct. A struct may handle
/// several types of events: see [`Router::on_each`](crate::Router::on_each).
///
/// ```
/// use pillarbox_event::RawEvent;
/// use pillarbox_inbox::{Handler, HandlerError, Router, Tx};
///
/// struct Count { name: &'static str }
///
/// impl Handler<RawEvent> for Count {
///     async fn handle(&self, tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
///         sqlx::query("update counts set events = events + 1 where name = $1")
///             .bind(self.name)
///             .execute(&mut **tx)
///             .await?;
///         Ok(())
///     }
/// }
///
/// let router = Router::new().on(Count { name: "orders" });
/// ```
///
/// A timeout or a shutdown may drop the future at any await. Then the transaction is rolled back, and the event is
/// delivered again. A panic is a failure like any other.
pub trait Handler<E>: Send + Sync + 'static {
    /// Handles one event, writing only through `tx`.
    fn handle(
        &self,
        tx: &mut Tx,
        event: E,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// An error that a handler can return: every one that converts into a [`HandlerError`].
#[diagnostic::on_unimplemented(
    message = "a handler cannot return the error `{Self}`",
    label = "this error does not convert into `HandlerError`",
    note = "implement `std::error::Error` for it, as `thiserror` does, or return a `HandlerError`"
)]
pub trait IntoHandlerError {
    /// Converts it.
    fn into_handler_error(self) -> HandlerError;
}

#[diagnostic::do_not_recommend]
impl<E: Into<HandlerError>> IntoHandlerError for E {
    fn into_handler_error(self) -> HandlerError {
        self.into()
    }
}

/// What a handler can take: a typed event, a [`RawEvent`], or either as [`Received`].
#[diagnostic::on_unimplemented(
    message = "a handler cannot take `{Self}`",
    label = "this cannot be read from an event",
    note = "take a type with `#[derive(Event, serde::Deserialize)]`, a `RawEvent`, or a `Received` of either"
)]
pub trait FromHandling: Sized + Send + 'static {
    /// The only type of event that can be taken, or `None` if every type can.
    const ACCEPTS: Option<&'static str>;

    /// The topics of these events: a NATS subject, perhaps with wildcards. `None` means any.
    const TOPIC: Option<&'static str>;

    /// Reads the event.
    ///
    /// # Errors
    /// [`DecodeError`], which is a permanent failure.
    fn from_handling(handling: &Handling) -> Result<Self, DecodeError>;
}

impl<E: FromEvent + Send + 'static> FromHandling for E {
    const ACCEPTS: Option<&'static str> = E::ACCEPTS;
    const TOPIC: Option<&'static str> = E::TOPIC;

    fn from_handling(handling: &Handling) -> Result<Self, DecodeError> {
        E::from_event(handling.event())
    }
}

/// An event with what is known about it. Dereferences to the event. A test makes one by [`for_test`](Self::for_test).
#[derive(Clone, Debug)]
pub struct Received<E> {
    event: E,
    raw: Arc<RawEvent>,
    attempt: u32,
}

impl<E: FromEvent> Received<E> {
    pub(crate) fn read(raw: &Arc<RawEvent>, attempt: u32) -> Result<Self, DecodeError> {
        Ok(Self { event: E::from_event(raw)?, raw: raw.clone(), attempt })
    }
}

impl<E> Received<E> {
    pub(crate) fn new(event: E, raw: Arc<RawEvent>, attempt: u32) -> Self {
        Self { event, raw, attempt }
    }

    /// The event's id. It is the same at every delivery, and unique only within the event's source.
    pub fn id(&self) -> &EventId {
        self.raw.id()
    }

    /// The idempotency key for calls to other services. It is different for every event of any source, and the same at
    /// every delivery. It has 1 to 36 bytes, and is the event's id if a relay shipped the event. If several consumers
    /// call the same provider about one event, each must put its own name in front.
    pub fn idempotency_key(&self) -> String {
        self.raw.identity().to_string()
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The context that this event passes to the events it causes. A handler of single events runs inside it. A
    /// [`BatchHandler`](crate::BatchHandler) must set it on the events that it publishes.
    pub fn context(&self) -> Context {
        Context::of(&self.raw)
    }

    /// The event as it was delivered, with key, topic, time, correlation, trace and headers.
    pub fn raw(&self) -> &Arc<RawEvent> {
        &self.raw
    }

    /// The event itself.
    pub fn into_inner(self) -> E {
        self.event
    }
}

impl<E> Deref for Received<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.event
    }
}

impl<E: FromEvent + Send + 'static> FromHandling for Received<E> {
    const ACCEPTS: Option<&'static str> = E::ACCEPTS;
    const TOPIC: Option<&'static str> = E::TOPIC;

    fn from_handling(handling: &Handling) -> Result<Self, DecodeError> {
        Ok(Self {
            event: E::from_event(handling.event())?,
            raw: handling.event().clone(),
            attempt: handling.attempt(),
        })
    }
}

/// A function that is a handler: `async fn(&mut Tx, E) -> Result<(), impl IntoHandlerError>`. The trait is implemented
/// for all that fit.
pub trait HandlerFunction<'t, E>: Send + Sync {
    /// Its error.
    type Error: IntoHandlerError;
    /// What it returns.
    type Future: Future<Output = Result<(), Self::Error>> + Send + 't;

    /// Calls it.
    fn call(&self, tx: &'t mut Tx, event: E) -> Self::Future;
}

impl<'t, F, Fut, E, Failure> HandlerFunction<'t, E> for F
where
    F: Fn(&'t mut Tx, E) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), Failure>> + Send + 't,
    Failure: IntoHandlerError,
{
    type Error = Failure;
    type Future = Fut;

    fn call(&self, tx: &'t mut Tx, event: E) -> Fut {
        self(tx, event)
    }
}

/// What a router takes as a handler: a function, or a struct that implements [`Handler`]. `Kind` says which, and is
/// always inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of events",
    label = "this is not a handler",
    note = "a handler is a function `async fn(tx: &mut Tx, event: E) -> Result<(), HandlerError>`, where `E` is a type \
            with `#[derive(Event, serde::Deserialize)]`, a `RawEvent`, or a `Received` of either",
    note = "check that it takes `&mut Tx` (not `Tx`), that its error converts into `HandlerError` (implement \
            `std::error::Error` for it, as `thiserror` does), and that it holds nothing across an `.await` that is not \
            `Send`",
    note = "a closure that captures something is not a handler: name a function and give it its state by `with_state`, \
            or implement `Handler` for a struct"
)]
pub trait IntoHandler<E, Kind> {
    /// The handler.
    type Handler: Handler<E>;

    /// Turns it into a handler.
    fn into_handler(self) -> Self::Handler;
}

/// A struct that implements [`Handler`]: a kind of [`IntoHandler`].
#[derive(Debug)]
pub struct Struct;

/// A function: a kind of [`IntoHandler`].
#[derive(Debug)]
pub struct Function;

impl<H: Handler<E>, E> IntoHandler<E, Struct> for H {
    type Handler = Self;

    fn into_handler(self) -> Self {
        self
    }
}

impl<F, E> IntoHandler<E, Function> for F
where
    F: for<'t> HandlerFunction<'t, E> + 'static,
    E: Send + 'static,
{
    type Handler = OfFunction<F>;

    fn into_handler(self) -> OfFunction<F> {
        OfFunction(self)
    }
}

/// A function as a handler.
#[derive(Debug)]
pub struct OfFunction<F>(F);

impl<F, E> Handler<E> for OfFunction<F>
where
    F: for<'t> HandlerFunction<'t, E> + 'static,
    E: Send + 'static,
{
    async fn handle(&self, tx: &mut Tx, event: E) -> Result<(), HandlerError> {
        self.0.call(tx, event).await.map_err(IntoHandlerError::into_handler_error)
    }
}

/// Makes a handler from a function and the state that it needs.
///
/// ```
/// use pillarbox_event::RawEvent;
/// use pillarbox_inbox::{HandlerError, Router, Tx, with_state};
///
/// struct Provider;
///
/// impl Provider {
///     async fn charge(&self, key: &str) -> Result<(), std::io::Error> { Ok(()) }
/// }
///
/// async fn charge(tx: &mut Tx, placed: RawEvent, provider: &Provider) -> Result<(), HandlerError> {
///     provider.charge(&placed.identity().to_string()).await?;
///     Ok(())
/// }
///
/// let router = Router::new().on(with_state(Provider, charge));
/// ```
///
/// To share the state with other handlers, give it as an [`Arc`], and take `&Arc<Provider>`.
pub fn with_state<S, F>(state: S, function: F) -> WithState<S, F> {
    WithState { state, function }
}

/// See [`with_state`].
#[derive(Debug)]
pub struct WithState<S, F> {
    state: S,
    function: F,
}

/// A function that [`with_state`] turns into a handler. The trait is implemented for all that fit.
pub trait StateFunction<'t, E, S>: Send + Sync {
    /// Its error.
    type Error: IntoHandlerError;
    /// What it returns.
    type Future: Future<Output = Result<(), Self::Error>> + Send + 't;

    /// Calls it.
    fn call(&self, tx: &'t mut Tx, event: E, state: &'t S) -> Self::Future;
}

impl<'t, F, Fut, E, S: 't, Failure> StateFunction<'t, E, S> for F
where
    F: Fn(&'t mut Tx, E, &'t S) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), Failure>> + Send + 't,
    Failure: IntoHandlerError,
{
    type Error = Failure;
    type Future = Fut;

    fn call(&self, tx: &'t mut Tx, event: E, state: &'t S) -> Fut {
        self(tx, event, state)
    }
}

impl<F, E, S> Handler<E> for WithState<S, F>
where
    F: for<'t> StateFunction<'t, E, S> + 'static,
    E: Send + 'static,
    S: Send + Sync + 'static,
{
    async fn handle(&self, tx: &mut Tx, event: E) -> Result<(), HandlerError> {
        let handling = self.function.call(tx, event, &self.state);
        handling.await.map_err(IntoHandlerError::into_handler_error)
    }
}
