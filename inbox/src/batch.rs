//! Many events in one transaction.
//!
//! The speed of a projection or an import is limited by its commits. A [`BatchHandler`] takes many events at a time.
//! One statement records them, and one commit ends them:
//!
//! ```text
//!   begin ─ record all ─ savepoint ─ handler(all) ─ release ─ commit
//!                            │            │ fails
//!                            │            ▼
//!                            │   roll back to the savepoint; the first half by itself, then the second half,
//!                            │   and so on, until those that fail stand alone
//!                            └── failed events are not recorded; the others commit
//! ```
//!
//! If an event failed, the later events of its key are left out, and come again after it. A failed event is counted,
//! tried again and given up by itself, as without batches. If the failure is not the event's, if the handler takes too
//! long, or if the commit fails, the whole batch is undone, and its events run one by one.
//!
//! A handler that ended the transaction may have written after its end, where nothing can be undone. So it is not
//! called again for the events that it was given; all of them are given up at once for that reason. The other events of
//! the batch come again.
//!
//! Parked events are handled in batches, too. One statement releases them from the dead letters before they are
//! recorded (`release_all.sql`), and those that are undone are parked again, in the same transaction.

mod halves;
mod transaction;

use std::future::Future;
use std::sync::Arc;

use futures::future::BoxFuture;
use pillarbox_event::{FromEvent, RawEvent};

use crate::delivery::Outcome;
use crate::error::{HandlerError, InboxError};
use crate::handler::{Function, Handler, IntoHandlerError, Received, Struct};
use crate::store::Store;
use crate::tx::Tx;

pub(crate) use self::halves::{BatchRoute, Rules, ToHandler};
pub(crate) use self::transaction::{Batches, no_handler};

/// Handles many events of one type in one transaction. A plain function is a batch handler, too:
///
/// ```
/// use pillarbox_event::RawEvent;
/// use pillarbox_inbox::{HandlerError, Received, Router, Tx};
///
/// async fn import(tx: &mut Tx, events: &[Received<RawEvent>]) -> Result<(), HandlerError> {
///     let ids: Vec<&str> = events.iter().map(|event| event.id().as_str()).collect();
///     sqlx::query("insert into imported (id) select unnest($1::text[])")
///         .bind(ids)
///         .execute(&mut **tx)
///         .await?;
///     Ok(())
/// }
///
/// let router = Router::new().on_batch(import);
/// ```
///
/// If it needs state, implement this trait for a struct. One of [`RawEvent`] takes events of every type that no other
/// handler takes.
///
/// The events of a key are in order. An event may come again in another slice, after a rollback: when an event of a
/// slice fails, the handler is called for parts of the slice. So it must write only through `tx`, and keep nothing in
/// `self` that a rollback would not undo. The future may be dropped at any await.
///
/// An event that it publishes has no single cause, unless the slice has a single event. Set the cause with
/// [`Received::context`] and [`RawEvent::caused_by`].
///
/// ```
/// # use pillarbox_event::{Event, IntoEvent, RawEvent};
/// # use pillarbox_inbox::{HandlerError, Received, Tx};
/// # struct OrderPlaced { order: i64 }
/// # #[derive(Event, serde::Serialize)]
/// # #[event(type = "payment.taken", topic = "payments.taken")]
/// # struct PaymentTaken { order: i64 }
/// async fn charge(tx: &mut Tx, orders: &[Received<OrderPlaced>]) -> Result<(), HandlerError> {
///     let taken = orders.iter().map(|placed| {
///         let taken = PaymentTaken { order: placed.order }.into_event()?;
///         Ok(taken.caused_by(&placed.context()))
///     });
///     let taken = taken.collect::<Result<Vec<RawEvent>, HandlerError>>()?;
///     pillarbox_outbox::publish_all(tx, taken).await?;
///     Ok(())
/// }
/// ```
pub trait BatchHandler<E>: Send + Sync + 'static {
    /// Handles one or more events: all of them, or none.
    fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<E>],
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// A function that is a batch handler: `async fn(&mut Tx, &[Received<E>]) -> Result<(), impl IntoHandlerError>`. The
/// trait is implemented for all that fit.
pub trait BatchFunction<'t, E: 't>: Send + Sync {
    /// Its error.
    type Error: IntoHandlerError;
    /// What it returns.
    type Future: Future<Output = Result<(), Self::Error>> + Send + 't;

    /// Calls it.
    fn call(&self, tx: &'t mut Tx, events: &'t [Received<E>]) -> Self::Future;
}

impl<'t, F, Fut, E: 't, Failure> BatchFunction<'t, E> for F
where
    F: Fn(&'t mut Tx, &'t [Received<E>]) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), Failure>> + Send + 't,
    Failure: IntoHandlerError,
{
    type Error = Failure;
    type Future = Fut;

    fn call(&self, tx: &'t mut Tx, events: &'t [Received<E>]) -> Fut {
        self(tx, events)
    }
}

/// What a router takes as a batch handler: a function, or a struct that implements [`BatchHandler`]. `Kind` says which,
/// and is always inferred.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of batches",
    label = "this is not a handler of batches",
    note = "a handler of batches is a function \
            `async fn(tx: &mut Tx, events: &[Received<E>]) -> Result<(), HandlerError>`, where `E` is a type with \
            `#[derive(Event, serde::Deserialize)]`, or a `RawEvent`",
    note = "if it needs state, implement `BatchHandler` for a struct"
)]
pub trait IntoBatchHandler<E, Kind> {
    /// The batch handler.
    type Handler: BatchHandler<E>;

    /// Turns it into a batch handler.
    fn into_batch_handler(self) -> Self::Handler;
}

impl<H: BatchHandler<E>, E> IntoBatchHandler<E, Struct> for H {
    type Handler = Self;

    fn into_batch_handler(self) -> Self {
        self
    }
}

impl<F, E> IntoBatchHandler<E, Function> for F
where
    F: for<'t> BatchFunction<'t, E> + 'static,
    E: Send + Sync + 'static,
{
    type Handler = OfBatchFunction<F>;

    fn into_batch_handler(self) -> OfBatchFunction<F> {
        OfBatchFunction(self)
    }
}

/// A function as a batch handler.
#[derive(Debug)]
pub struct OfBatchFunction<F>(F);

impl<F, E> BatchHandler<E> for OfBatchFunction<F>
where
    F: for<'t> BatchFunction<'t, E> + 'static,
    E: Send + Sync + 'static,
{
    async fn handle(&self, tx: &mut Tx, events: &[Received<E>]) -> Result<(), HandlerError> {
        self.0.call(tx, events).await.map_err(IntoHandlerError::into_handler_error)
    }
}

/// A batch handler that is used for single events.
#[derive(Debug)]
pub(crate) struct One<H>(pub(crate) Arc<H>);

impl<H, E> Handler<Received<E>> for One<H>
where
    H: BatchHandler<E>,
    E: FromEvent + Send + Sync + 'static,
{
    async fn handle(&self, tx: &mut Tx, event: Received<E>) -> Result<(), HandlerError> {
        self.0.handle(tx, std::slice::from_ref(&event)).await
    }
}

/// What became of an event of a batch.
#[derive(Debug)]
pub enum BatchEnd {
    /// Handled now, or handled or parked before.
    Well(Outcome),
    /// The event itself failed.
    Failed(InboxError),
    /// Left out, because an earlier event of its key failed, or because the batch contains it twice.
    Behind,
}

/// Runs batches of events, whatever their types.
pub trait RunBatch: Send + Sync {
    /// Whether events of this type are handled in batches. The others are handled one by one.
    fn takes(&self, event_type: &str) -> bool;

    /// Handles these events in one transaction, and says what became of each, in their order. An error has undone all
    /// of it. Dropping the future rolls back. `dead_letters`: all of them were taken from the dead letters, and are
    /// released if they are handled.
    fn run<'a>(
        &'a self,
        store: &'a Store,
        events: &'a [Arc<RawEvent>],
        dead_letters: bool,
    ) -> BoxFuture<'a, Result<Vec<BatchEnd>, InboxError>>;
}
