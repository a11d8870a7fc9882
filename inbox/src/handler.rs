//! Handlers of events, which a service writes.

use std::future::Future;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use pillarbox_event::{Context, DecodeError, EventId, FromEvent, RawEvent};

use crate::delivery::Handling;
use crate::error::HandlerError;
use crate::tx::Tx;

/// Handles events of one type. State lives in `self`; a plain function will do without: [`handler_fn`].
///
/// ```
/// use pillarbox_event::RawEvent;
/// use pillarbox_inbox::{Handler, HandlerError, Tx};
///
/// struct Count { table: &'static str }
///
/// impl Handler<RawEvent> for Count {
///     async fn handle(&self, tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
///         sqlx::query("update counts set events = events + 1 where name = $1")
///             .bind(self.table)
///             .execute(&mut **tx)
///             .await?;
///         Ok(())
///     }
/// }
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

/// What a handler can take: a typed event, a [`RawEvent`], or either as [`Received`].
pub trait FromHandling: Sized + Send + 'static {
    /// The only type of event that can be taken, or `None` if every type can.
    const ACCEPTS: Option<&'static str>;

    /// Reads the event.
    ///
    /// # Errors
    /// [`DecodeError`], which is a permanent failure.
    fn from_handling(handling: &Handling) -> Result<Self, DecodeError>;
}

impl<E: FromEvent + Send + 'static> FromHandling for E {
    const ACCEPTS: Option<&'static str> = E::ACCEPTS;

    fn from_handling(handling: &Handling) -> Result<Self, DecodeError> {
        E::from_event(handling.event())
    }
}

/// An event with what is known about it. Dereferences to the event.
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

    fn from_handling(handling: &Handling) -> Result<Self, DecodeError> {
        Ok(Self {
            event: E::from_event(handling.event())?,
            raw: handling.event().clone(),
            attempt: handling.attempt(),
        })
    }
}

/// Makes a handler of a plain `async fn(&mut Tx, Event) -> Result<(), HandlerError>`.
///
/// Closures that capture will not do, because stable Rust cannot say that their futures are `Send`: implement
/// [`Handler`] for a struct instead.
pub fn handler_fn<F, E>(function: F) -> HandlerFn<F, E>
where
    F: for<'t> HandlerFunction<'t, E>,
{
    HandlerFn { function, event: PhantomData }
}

/// See [`handler_fn`].
#[derive(Debug)]
pub struct HandlerFn<F, E> {
    function: F,
    event: PhantomData<fn(E)>,
}

/// A function that [`handler_fn`] takes. It is implemented for all that fit.
pub trait HandlerFunction<'t, E>: Send + Sync {
    /// What it returns.
    type Future: Future<Output = Result<(), HandlerError>> + Send + 't;

    /// Calls it.
    fn call(&self, tx: &'t mut Tx, event: E) -> Self::Future;
}

impl<'t, F, Fut, E> HandlerFunction<'t, E> for F
where
    F: Fn(&'t mut Tx, E) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 't,
{
    type Future = Fut;

    fn call(&self, tx: &'t mut Tx, event: E) -> Fut {
        self(tx, event)
    }
}

impl<F, E> Handler<E> for HandlerFn<F, E>
where
    F: for<'t> HandlerFunction<'t, E> + 'static,
    E: Send + 'static,
{
    async fn handle(&self, tx: &mut Tx, event: E) -> Result<(), HandlerError> {
        self.function.call(tx, event).await
    }
}
