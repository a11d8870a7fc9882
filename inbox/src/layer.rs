//! The tower layer that runs a handler once per event.

use std::panic::AssertUnwindSafe;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use pillarbox_event::{Context as EventContext, RawEvent};
use pillarbox_store::limit::within;
use sqlx::PgPool;
use tower_layer::Layer;
use tower_service::Service;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::dead_letter::DeadLetters;
use crate::delivery::{Delivery, EndOnDrop, Handling, Outcome, Slot};
use crate::error::{BEGIN, BoxError, HandlerError, InboxError};
use crate::store::{Begun, Claim, Fate, LONGEST, Store};
use pillarbox_store::schema;

/// Wraps a service of [`Handling`] into a service of [`Delivery`] that runs it once per event.
///
/// ```no_run
/// use std::time::Duration;
/// use pillarbox_inbox::{Delivery, InboxLayer, Router};
/// use tower::ServiceBuilder;
///
/// # fn example(pool: sqlx::PgPool) -> Result<(), pillarbox_inbox::InboxError> {
/// let service = ServiceBuilder::new()
///     .buffer::<Delivery>(64) // shared by tasks
///     .load_shed() // refuses what the limit would keep waiting: come again
///     .concurrency_limit(16) // so many transactions
///     .layer(InboxLayer::new(pool, "payments")?)
///     .timeout(Duration::from_secs(5)) // inside: rolls back
///     .service(Router::new());
/// # Ok(()) }
/// ```
///
/// For each delivery the layer begins a transaction and records the event's [identity](pillarbox_event::identity). If
/// the identity is recorded already, the answer is [`Outcome::Duplicate`] and the inner service is not called. If
/// another transaction is recording it at the same time, the layer waits for that one. Otherwise the inner service
/// runs, inside the event's [`Context`](pillarbox_event::Context) and a span that joins the event's
/// [trace](pillarbox_event::trace). If the service succeeds, the transaction is committed. If it fails, panics, or is
/// dropped, the transaction is rolled back.
///
/// Layers outside of it see deliveries (limits, tracing, load shedding), layers inside see handlings with
/// their transaction (timeouts that roll back).
///
/// Success commits only if every statement of the transaction succeeded. A handler that expects one to fail
/// runs it in a savepoint (`tx.begin()`) or writes `on conflict do nothing`.
#[derive(Clone, Debug)]
pub struct InboxLayer {
    store: Store,
}

impl InboxLayer {
    /// A layer for the consumer of this name, in schema `pillarbox`. Handled events are recorded per name: under
    /// another name, every event counts as not handled yet.
    ///
    /// # Errors
    /// None with this schema.
    pub fn new(pool: PgPool, consumer: &str) -> Result<Self, InboxError> {
        Self::in_schema(pool, consumer, schema::DEFAULT)
    }

    /// The same in another schema.
    ///
    /// # Errors
    /// [`InboxError::Schema`].
    pub fn in_schema(pool: PgPool, consumer: &str, schema: &str) -> Result<Self, InboxError> {
        Ok(Self { store: Store::new(pool, consumer, schema, None)? })
    }

    /// The dead letters of this consumer.
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters::of(self.store.clone())
    }

    /// Removes the rows of events that this consumer handled longer than `retention` ago, and of dead letters that were
    /// resolved longer ago. Returns the number of removed rows. The statements are short and block nobody. A `Consumer`
    /// of `pillarbox-consumer` does this by itself; without one, call this from time to time. Keep rows for as long as
    /// an event may be delivered again.
    ///
    /// Dropping the future stops it in the middle. That is harmless.
    ///
    /// # Errors
    /// The error of sqlx. Rows that were removed before the error stay removed.
    pub async fn remove_old(&self, retention: Duration) -> Result<u64, sqlx::Error> {
        crate::retention::remove_old(&self.store, retention).await
    }

    /// For an event source, which has a [`Store`].
    pub fn of(store: Store) -> Self {
        Self { store }
    }
}

impl<S> Layer<S> for InboxLayer {
    type Service = Inbox<S>;

    fn layer(&self, inner: S) -> Inbox<S> {
        Inbox { inner, store: self.store.clone() }
    }
}

/// The service that [`InboxLayer`] makes.
#[derive(Clone, Debug)]
pub struct Inbox<S> {
    inner: S,
    store: Store,
}

impl<S> Service<Delivery> for Inbox<S>
where
    // The future must own the instance that was ready, because it calls it once the transaction is open.
    S: Service<Handling, Response = (), Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
{
    type Response = Outcome;
    type Error = InboxError;
    type Future = BoxFuture<'static, Result<Outcome, InboxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), InboxError>> {
        self.inner.poll_ready(cx).map_err(|error| InboxError::of_service(error.into()))
    }

    fn call(&mut self, delivery: Delivery) -> Self::Future {
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(once(self.store.clone(), inner, delivery))
    }
}

async fn once<S>(store: Store, mut inner: S, delivery: Delivery) -> Result<Outcome, InboxError>
where
    S: Service<Handling, Response = (), Error: Into<BoxError>, Future: Send> + Send,
{
    let Delivery { event, dead_letter } = delivery;
    let identity = event.identity();
    let id = identity.as_str();
    let (begun, failed) = match begin(&store, &event, dead_letter).await? {
        Start::Handle(begun, failed) => (begun, failed),
        Start::Not(outcome) => return Ok(outcome),
    };
    let slot = Slot::new(begun);
    let _end = EndOnDrop(slot.clone());
    let attempt = failed.unwrap_or(0) + 1;
    let handling = Handling { event: event.clone(), attempt, slot: slot.clone() };
    let span = span_of(&event, &store.consumer, attempt);
    let handled = EventContext::of(&event)
        .scope(async { inner.call(handling).await.map_err(Into::<BoxError>::into) });
    let handled = AssertUnwindSafe(handled.instrument(span.clone())).catch_unwind().await;
    if !matches!(handled, Ok(Ok(()))) {
        span.record("otel.status_code", "ERROR");
    }
    drop(span);
    let error = match handled {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(InboxError::of_service(error)),
        Err(panic) => Some(InboxError::handler(HandlerError::transient(panic_text(&*panic)))),
    };
    // The transaction is taken out, so that a task that still holds the handling can no longer write.
    let begun = slot.end();
    if let Some(error) = error {
        return Err(undone(begun, error).await);
    }
    let begun = begun.ok_or(InboxError::InUse)?;
    store.commit(begun, failed.map(|_| id)).await.map(|()| Outcome::Handled)
}

/// Undoes what a failed handler did. Returns the handler's error. If the handler had ended the transaction, so that
/// something may be impossible to undo, returns that instead.
async fn undone(begun: Option<Begun>, error: InboxError) -> InboxError {
    let Some(begun) = begun else { return error };
    begun.undo().await.and_then(Fate::ended).unwrap_or(error)
}

/// The span that a handler runs in, in the trace of its event. It contains no payload and no header. The `otel.` fields
/// are for tracing-opentelemetry.
fn span_of(event: &RawEvent, consumer: &str, attempt: u32) -> Span {
    let span = tracing::info_span!(
        "handle",
        otel.name = %format_args!("handle {}", event.event_type()),
        otel.kind = "consumer",
        otel.status_code = Empty,
        consumer,
        event_id = event.id().as_str(),
        event_type = event.event_type(),
        key = event.key(),
        attempt,
    );
    pillarbox_event::trace::join(&span, event);
    span
}

/// Whether the handler must run.
enum Start {
    /// It runs in this transaction. The number of failed attempts; `None`: nothing is known.
    Handle(Begun, Option<u32>),
    Not(Outcome),
}

/// Opens a transaction and claims the event in it. If the database is silent for too long, another transaction may have
/// the event.
async fn begin(store: &Store, event: &RawEvent, dead_letter: bool) -> Result<Start, InboxError> {
    let identity = event.identity();
    let id = identity.as_str();
    let key = event.key().filter(|_| store.strict && !dead_letter);
    // An event that was taken from the dead letters comes before the events that wait there.
    let behind = event.key().filter(|_| !dead_letter);
    if key.is_none()
        && let Some((mut begun, claim)) = store.begin_and_claim(id, behind, dead_letter).await?
    {
        // If the event was not released, the rollback of the transaction undoes the claim.
        let Some(claim) = claim else { return Ok(Start::Not(Outcome::Duplicate)) };
        let claimed = claimed(store, &mut begun, event, claim);
        let claimed = within(LONGEST, "the database", claimed).await;
        return start(store, begun, claimed.ok()).await;
    }
    let mut begun = store.begin().await.map_err(InboxError::database(BEGIN))?;
    let claimed = claim(store, &mut begun, event, dead_letter);
    let claimed = within(LONGEST, "the database", claimed).await;
    start(store, begun, claimed.ok()).await
}

/// What follows for the handler. `None`: the database was silent for too long.
async fn start(
    store: &Store,
    begun: Begun,
    claimed: Option<Result<Claimed, InboxError>>,
) -> Result<Start, InboxError> {
    match claimed {
        Some(Ok(Claimed::Handle(failed))) => Ok(Start::Handle(begun, failed)),
        Some(Ok(Claimed::Duplicate)) => Ok(Start::Not(Outcome::Duplicate)),
        Some(Ok(Claimed::Parked)) => {
            store.commit(begun, None).await?;
            Ok(Start::Not(Outcome::Parked))
        }
        Some(Err(error)) => Err(error),
        None => {
            begun.abandon();
            Err(InboxError::Slow { doing: "record the event" })
        }
    }
}

/// What became of an event in the transaction that was opened for it.
enum Claimed {
    /// It must be handled. The number of failed attempts; `None`: nothing is known.
    Handle(Option<u32>),
    Duplicate,
    /// It was parked behind the dead letter of its key, which must be committed.
    Parked,
}

/// Claims the event in this transaction.
async fn claim(
    store: &Store,
    begun: &mut Begun,
    event: &RawEvent,
    dead_letter: bool,
) -> Result<Claimed, InboxError> {
    let identity = event.identity();
    let id = identity.as_str();
    let key = event.key().filter(|_| store.strict && !dead_letter);
    let tx = &mut *begun.tx;
    if dead_letter
        && !store
            .release(&mut *tx, id)
            .await
            .map_err(InboxError::database("release the dead letter"))?
    {
        return Ok(Claimed::Duplicate);
    }
    if let Some(key) = key {
        let park = InboxError::database("look for dead letters of the key");
        // This comes before the claim, and after the claim of the event before. So it sees the transaction that made
        // that event a dead letter.
        if !store.blocked(&mut *tx, &[key]).await.map_err(park)?.is_empty() {
            let park = InboxError::database("park the event");
            store.park(tx, event).await.map_err(park)?;
            return Ok(Claimed::Parked);
        }
    }
    let behind = event.key().filter(|_| !dead_letter);
    let claim = store.claim(begun, id, behind).await;
    let claim = claim.map_err(InboxError::database("record the event"))?;
    claimed(store, begun, event, claim).await
}

/// What follows from a claim.
async fn claimed(
    store: &Store,
    begun: &mut Begun,
    event: &RawEvent,
    claim: Claim,
) -> Result<Claimed, InboxError> {
    match claim {
        Claim::Claimed(failed) => Ok(Claimed::Handle(failed)),
        Claim::Duplicate => Ok(Claimed::Duplicate),
        Claim::Behind => {
            store.park_claimed(begun, event).await?;
            Ok(Claimed::Parked)
        }
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", said.unwrap_or("without a text"))
}
