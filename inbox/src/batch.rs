//! Many events in one transaction.
//!
//! A projection or an import is bound by its commits. A [`BatchHandler`] takes many events at a time, recorded
//! by one statement and committed by one commit:
//!
//! ```text
//!   begin ─ record all ─ savepoint ─ handler(all) ─ release ─ commit
//!                            │            │ fails
//!                            │            ▼
//!                            │   roll back to the savepoint; the first half by itself, then the second half,
//!                            │   and so on, until those that fail stand alone
//!                            └── what failed is recorded no more; the rest commits
//! ```
//!
//! Behind an event that failed, the later ones of its key are left out, and come again behind it. What failed is
//! counted, tried again, and given up one by one, as without batches. A failure that is not the event's, a handler
//! that takes too long, and a commit that fails undo the whole batch, and its events run one by one.
//!
//! A handler that ends the transaction may have written behind its end, where nothing can be undone. So it is not called
//! again for the events that it had in hand: all of them are given up at once, for that reason. The others of the batch
//! come again.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use pillarbox_event::{FromEvent, Identity, RawEvent};
use pillarbox_store::limit::{limited, within};
use tokio::time::timeout;

use crate::delivery::{EndOnDrop, Outcome, Slot};
use crate::error::HandlerError;
use crate::error::{BEGIN, InboxError};
use crate::fault::{Fault, Sign};
use crate::handler::{Handler, Received};
use crate::layer::panic_text;
use crate::store::{Begun, Fate, LONGEST, Store};
use crate::timeout::TookTooLong;
use crate::tx::Tx;

/// Handles many events of one type in one transaction. State lives in `self`; a plain function will do without:
/// [`batch_fn`]. One of [`RawEvent`] takes events of every type.
///
/// ```
/// use pillarbox_event::RawEvent;
/// use pillarbox_inbox::{BatchHandler, HandlerError, Received, Tx};
///
/// struct Import;
///
/// impl BatchHandler<RawEvent> for Import {
///     async fn handle(&self, tx: &mut Tx, events: &[Received<RawEvent>]) -> Result<(), HandlerError> {
///         let ids: Vec<&str> = events.iter().map(|event| event.id().as_str()).collect();
///         sqlx::query("insert into imported (id) select unnest($1::text[])")
///             .bind(ids)
///             .execute(&mut **tx)
///             .await?;
///         Ok(())
///     }
/// }
/// ```
///
/// The events stand in order, per key. The same event may be handed in again in another slice, after a rollback:
/// when one of a slice fails, the handler is called for parts of it. So it writes only through `tx`, and keeps
/// nothing in `self` that a rollback would not undo. The future may be dropped at any await.
///
/// What it publishes has no single cause, unless it was given a single event: say which, by
/// [`Received::context`] and [`RawEvent::caused_by`].
///
/// ```
/// # use std::borrow::Cow;
/// # use pillarbox_event::{Event, IntoEvent, RawEvent};
/// # use pillarbox_inbox::{HandlerError, Received, Tx};
/// # #[derive(Clone, serde::Serialize, serde::Deserialize)]
/// # struct OrderPlaced { order: i64 }
/// # #[derive(serde::Serialize)]
/// # struct PaymentTaken { order: i64 }
/// # impl Event for PaymentTaken {
/// #     const TYPE: &'static str = "payment.taken";
/// #     fn topic(&self) -> Cow<'_, str> { "payments.taken".into() }
/// # }
/// async fn charge(tx: &mut Tx, orders: Vec<Received<OrderPlaced>>) -> Result<(), HandlerError> {
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
    /// Handles one event or more: all of them, or none.
    fn handle(
        &self,
        tx: &mut Tx,
        events: &[Received<E>],
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// Makes a batch handler of a plain `async fn(&mut Tx, Vec<Received<Event>>) -> Result<(), HandlerError>`, for
/// events that are `Clone`.
pub fn batch_fn<F, E>(function: F) -> BatchFn<F, E>
where
    F: for<'t> crate::handler::HandlerFunction<'t, Vec<Received<E>>>,
{
    BatchFn { function, event: PhantomData }
}

/// See [`batch_fn`].
#[derive(Debug)]
pub struct BatchFn<F, E> {
    function: F,
    event: PhantomData<fn(E)>,
}

impl<F, E> BatchHandler<E> for BatchFn<F, E>
where
    F: for<'t> crate::handler::HandlerFunction<'t, Vec<Received<E>>> + 'static,
    E: Clone + Send + Sync + 'static,
{
    async fn handle(&self, tx: &mut Tx, events: &[Received<E>]) -> Result<(), HandlerError> {
        self.function.call(tx, events.to_vec()).await
    }
}

/// A batch handler as one of single events.
#[derive(Debug)]
pub(crate) struct One<H>(Arc<H>);

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
    /// Handled, or done with before.
    Well(Outcome),
    /// Failed by itself.
    Failed(InboxError),
    /// Left out: an event before it in its key failed, or is the same.
    Behind,
}

/// Runs a [`BatchHandler`], whatever the type of its events.
pub trait RunBatch: Send + Sync {
    /// Handles these events in one transaction, and says what became of each, in their order. An error has undone all of
    /// it. Dropping the future rolls back.
    fn run<'a>(
        &'a self,
        store: &'a Store,
        events: &'a [Arc<RawEvent>],
    ) -> BoxFuture<'a, Result<Vec<BatchEnd>, InboxError>>;
}

/// A batch handler, to be run by a source of events.
///
/// `longest` is how long one call of it may take; a longer one fails. `keeps_keys` says whether an event that fails holds
/// back the later ones of its key.
pub fn run_batches<H, E>(handler: Arc<H>, longest: Duration, keeps_keys: bool) -> Arc<dyn RunBatch>
where
    H: BatchHandler<E>,
    E: FromEvent + Send + Sync + 'static,
{
    Arc::new(Batches { handler, longest, keeps_keys, event: PhantomData })
}

/// The same handler for one event at a time, as a [`Router`](crate::Router) takes it.
pub fn one_by_one<H, E>(handler: Arc<H>) -> impl Handler<Received<E>>
where
    H: BatchHandler<E>,
    E: FromEvent + Send + Sync + 'static,
{
    One(handler)
}

/// A batch handler with its settings.
#[derive(Debug)]
struct Batches<H, E> {
    handler: Arc<H>,
    longest: Duration,
    keeps_keys: bool,
    event: PhantomData<fn(E)>,
}

impl<H, E> RunBatch for Batches<H, E>
where
    H: BatchHandler<E>,
    E: FromEvent + Send + Sync + 'static,
{
    fn run<'a>(
        &'a self,
        store: &'a Store,
        events: &'a [Arc<RawEvent>],
    ) -> BoxFuture<'a, Result<Vec<BatchEnd>, InboxError>> {
        Box::pin(self.run_batch(store, events))
    }
}

/// Events of a batch that are handled together, and their places in it.
type Part<E> = Vec<(usize, Received<E>)>;

impl<H, E> Batches<H, E>
where
    H: BatchHandler<E>,
    E: FromEvent + Send + Sync + 'static,
{
    async fn run_batch(
        &self,
        store: &Store,
        events: &[Arc<RawEvent>],
    ) -> Result<Vec<BatchEnd>, InboxError> {
        let identities: Vec<_> = events.iter().map(|event| event.identity()).collect();
        let (begun, mut ends, known) = begin(store, events, &identities).await?;
        let slot = Slot::new(begun);
        let _end = EndOnDrop(slot.clone());
        let claimed: Vec<usize> =
            (0..events.len()).filter(|place| ends[*place].is_none()).collect();
        let mut part = Vec::with_capacity(claimed.len());
        for &place in &claimed {
            let event = &events[place];
            match decode(event, known.get(identities[place].as_str()).copied().flatten()) {
                Ok(event) => part.push((place, event)),
                Err(error) => ends[place] = Some(BatchEnd::Failed(error)),
            }
        }
        let handled = match slot.hold().await.as_mut() {
            Some(begun) => self.halve(begun, part, events, &mut ends).await,
            None => Err(InboxError::InUse),
        };
        if let Err(error) = handled {
            let fate = match slot.end() {
                Some(begun) => begun.undo().await,
                None => None,
            };
            return match fate {
                Some(Fate::Committed) => {
                    let ended = committed_by_handler(store, &identities, ends, &claimed).await;
                    ended.ok_or(error)
                }
                Some(Fate::RolledBack | Fate::Prepared) => Ok(rolled_back_by_handler(ends)),
                // The batch's savepoint was gone, which is proof.
                _ if matches!(error, InboxError::Ended { .. }) => Ok(rolled_back_by_handler(ends)),
                Some(Fate::Undone) | None => Err(error),
            };
        }
        let mut held_back = HashSet::new();
        for (event, end) in events.iter().zip(&mut ends) {
            let Some(key) = event.key().filter(|_| self.keeps_keys) else {
                continue;
            };
            if matches!(end, Some(BatchEnd::Failed(_))) && held_back.contains(key) {
                *end = Some(BatchEnd::Behind);
            }
            if !matches!(end, Some(BatchEnd::Well(_))) {
                held_back.insert(key);
            }
        }
        let ends: Vec<BatchEnd> =
            ends.into_iter().map(|end| end.unwrap_or(BatchEnd::Behind)).collect();
        let (mut undone, mut recovered) = (Vec::new(), Vec::new());
        for place in claimed {
            let id = identities[place].as_str();
            match ends[place] {
                BatchEnd::Well(_) if known.get(id).is_some_and(Option::is_some) => {
                    recovered.push(id)
                }
                BatchEnd::Well(_) => {}
                _ => undone.push(id),
            }
        }
        let mut begun = slot.end().ok_or(InboxError::InUse)?;
        if let Err(error) = record(store, &mut begun, &undone, &recovered).await {
            begun.undo_behind();
            return Err(InboxError::commit(error));
        }
        store.commit(begun, None).await.map(|()| ends)
    }

    /// Handles a part, or, if that fails, its halves, and so on: each as a whole or not at all.
    async fn halve(
        &self,
        begun: &mut Begun,
        part: Part<E>,
        all: &[Arc<RawEvent>],
        ends: &mut [Option<BatchEnd>],
    ) -> Result<(), InboxError> {
        let mut parts = vec![part];
        while let Some(mut part) = parts.pop() {
            part.retain(|(place, event)| {
                let key = event.raw().key().filter(|_| self.keeps_keys);
                let before = all.iter().zip(ends.iter()).take(*place);
                // Left out behind a failure of its key.
                key.is_none()
                    || !before.into_iter().any(|(other, end)| {
                        matches!(end, Some(BatchEnd::Failed(_))) && other.key() == key
                    })
            });
            if part.is_empty() {
                continue;
            }
            let (places, events): (Vec<usize>, Vec<Received<E>>) = part.into_iter().unzip();
            let handled = match self.handle(begun, &events).await {
                Ok(handled) => handled,
                Err(error) => {
                    // Asked for only if the handler has ended the transaction.
                    for place in places {
                        ends[place] = Some(BatchEnd::Failed(InboxError::Ended { committed: true }));
                    }
                    return Err(error);
                }
            };
            match handled {
                Ok(()) => {
                    for place in places {
                        ends[place] = Some(BatchEnd::Well(Outcome::Handled));
                    }
                }
                Err(error) if places.len() == 1 => ends[places[0]] = Some(BatchEnd::Failed(error)),
                Err(_) => {
                    let mut first: Part<E> = places.into_iter().zip(events).collect();
                    let second = first.split_off(first.len() / 2);
                    parts.push(second);
                    parts.push(first);
                }
            }
        }
        Ok(())
    }

    /// Calls the handler in a savepoint. The inner error has undone what it did; the outer one everything.
    async fn handle(
        &self,
        begun: &mut Begun,
        events: &[Received<E>],
    ) -> Result<Result<(), InboxError>, InboxError> {
        let set = begun.prove_and("savepoint pillarbox_batch").await;
        set.map_err(InboxError::database("set a savepoint"))?;
        let handling = self.handler.handle(&mut begun.tx, events);
        let handling = async {
            match events {
                [event] => event.context().scope(handling).await,
                _ => handling.await,
            }
        };
        let handled = timeout(self.longest, handling);
        let error = match AssertUnwindSafe(handled).catch_unwind().await {
            Ok(Ok(Ok(()))) => match begun.prove_and("release savepoint pillarbox_batch").await {
                Ok(()) => return Ok(Ok(())),
                Err(error) => match InboxError::commit(error) {
                    error @ InboxError::Ended { .. } => return Err(error),
                    error => error,
                },
            },
            Ok(Ok(Err(error))) => InboxError::handler(error),
            // It may have stopped in the middle of a statement, which a rollback would wait for.
            Ok(Err(_)) => {
                return Err(InboxError::handler(HandlerError::transient(TookTooLong(
                    self.longest,
                ))));
            }
            Err(panic) => InboxError::handler(HandlerError::transient(panic_text(&*panic))),
        };
        // Those of sqlx's own protocol errors that leave the connection as it was can be undone: a part that binds too
        // many values for one statement does not in halves. The others fail at the rollback.
        let can_be_undone = error.sign() == Sign::Broken;
        if !can_be_undone
            && matches!(error.fault(), Fault::Environment | Fault::Conflict | Fault::Outage)
        {
            return Err(error);
        }
        begun.undo_part("pillarbox_batch").await?;
        Ok(Err(error))
    }
}

/// Writes what became of the events of a batch: those that were undone are recorded no more, and the failures of those
/// that recovered are forgotten.
async fn record(
    store: &Store,
    begun: &mut Begun,
    undone: &[&str],
    recovered: &[&str],
) -> Result<(), sqlx::Error> {
    if undone.is_empty() && recovered.is_empty() {
        return Ok(());
    }
    // The statements run under the inbox's own role and settings.
    begun.settle().await?;
    if !undone.is_empty() {
        limited(LONGEST, store.unclaim(&mut *begun.tx, undone)).await?;
    }
    if !recovered.is_empty() {
        limited(LONGEST, store.forget_all(&mut *begun.tx, recovered)).await?;
    }
    Ok(())
}

/// What became of each event, when the handler has committed the transaction that it was given, and with it the rows
/// of all events. Those that it had not got yet are recorded no more, and come again. `None` if that failed.
async fn committed_by_handler(
    store: &Store,
    identities: &[Identity],
    ends: Vec<Option<BatchEnd>>,
    claimed: &[usize],
) -> Option<Vec<BatchEnd>> {
    let waiting = claimed.iter().filter(|place| ends[**place].is_none());
    let waiting: Vec<&str> = waiting.map(|place| identities[*place].as_str()).collect();
    if !waiting.is_empty()
        && let Err(error) = store.unclaim_now(&waiting).await
    {
        tracing::error!(
            consumer = &*store.consumer, events = ?waiting, %error,
            "a handler committed the transaction of its batch, and these events count as handled, which they are \
             not: delete their rows from the inbox",
        );
        return None;
    }
    Some(ends.into_iter().map(|end| end.unwrap_or(BatchEnd::Behind)).collect())
}

/// What became of each event, when the handler has rolled back the transaction that it was given, and with it all rows.
/// Those that it did not have in hand come again, also those that it had handled before.
fn rolled_back_by_handler(ends: Vec<Option<BatchEnd>>) -> Vec<BatchEnd> {
    let after = |end| match end {
        Some(BatchEnd::Failed(InboxError::Ended { .. })) => {
            BatchEnd::Failed(InboxError::Ended { committed: false })
        }
        Some(BatchEnd::Failed(error)) => BatchEnd::Failed(error),
        Some(BatchEnd::Well(Outcome::Duplicate)) => BatchEnd::Well(Outcome::Duplicate),
        Some(BatchEnd::Well(_) | BatchEnd::Behind) | None => BatchEnd::Behind,
    };
    ends.into_iter().map(after).collect()
}

/// What is decided already, and what is known of failed attempts at what was recorded.
type Recorded = (Vec<Option<BatchEnd>>, HashMap<String, Option<u32>>);

/// Opens a transaction and records the events in it.
async fn begin(
    store: &Store,
    events: &[Arc<RawEvent>],
    identities: &[Identity],
) -> Result<(Begun, Vec<Option<BatchEnd>>, HashMap<String, Option<u32>>), InboxError> {
    let mut begun = store.begin().await.map_err(InboxError::database(BEGIN))?;
    let claimed = claim(store, &mut begun, events, identities);
    match within(LONGEST, "the database", claimed).await {
        Ok(claimed) => claimed.map(|(ends, known)| (begun, ends, known)),
        Err(_) => {
            begun.abandon();
            Err(InboxError::Slow { doing: "record the events" })
        }
    }
}

/// Records the events in this transaction.
async fn claim(
    store: &Store,
    begun: &mut Begun,
    events: &[Arc<RawEvent>],
    identities: &[Identity],
) -> Result<Recorded, InboxError> {
    let mut ids = HashSet::with_capacity(events.len());
    // The same event twice: the second comes again, and is a duplicate then.
    let mut ends: Vec<Option<BatchEnd>> = identities
        .iter()
        .map(|identity| (!ids.insert(identity.as_str())).then_some(BatchEnd::Behind))
        .collect();
    let ids: Vec<&str> = ids.into_iter().collect();
    let known =
        store.claim_all(begun, &ids).await.map_err(InboxError::database("record the events"))?;
    for (identity, end) in identities.iter().zip(&mut ends) {
        if end.is_none() && !known.contains_key(identity.as_str()) {
            *end = Some(BatchEnd::Well(Outcome::Duplicate));
        }
    }
    let tx = &mut *begun.tx;
    let keys: Vec<&str> = events.iter().filter_map(|event| event.key()).collect();
    // After the claim, so that what made one of the duplicates a dead letter is seen.
    let blocked = store.blocked(&mut *tx, &keys).await;
    let blocked = blocked.map_err(InboxError::database("look for dead letters of the keys"))?;
    for ((event, identity), end) in events.iter().zip(identities).zip(&mut ends) {
        if end.is_none() && event.key().is_some_and(|key| blocked.contains(key)) {
            let parked = async {
                store.unclaim(&mut *tx, &[identity.as_str()]).await?;
                store.park(&mut *tx, event).await
            };
            parked.await.map_err(InboxError::database("park an event"))?;
            *end = Some(BatchEnd::Well(Outcome::Parked));
        }
    }
    Ok((ends, known))
}

/// Reads an event. What is not of the handler's type is a permanent failure.
fn decode<E: FromEvent + Send + 'static>(
    event: &Arc<RawEvent>,
    failed: Option<u32>,
) -> Result<Received<E>, InboxError> {
    if let Some(accepted) = E::ACCEPTS.filter(|accepted| *accepted != event.event_type()) {
        let error = format!(
            "no handler for events of type {:?}: the batch handler takes {accepted:?}",
            event.event_type()
        );
        return Err(InboxError::handler(HandlerError::permanent(error)));
    }
    Received::read(event, failed.unwrap_or(0) + 1)
        .map_err(|error| InboxError::handler(HandlerError::permanent(error)))
}
